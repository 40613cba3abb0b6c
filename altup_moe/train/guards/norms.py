"""Whether a gradient may be used, by the norm that it is clipped by."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist

NORM_LIMIT = 1e19
"""A gradient norm from here on counts as overflowed. Optimizers square gradients in fp32, whose largest number is
3.4e38: below this limit neither a square nor a sum of them can overflow, and second moments stay finite."""


def agreed_norm(norm: float, device: torch.device) -> float:
    """The largest norm of all ranks; inf if it is infinite or undefined on one of them. Collective."""
    told = torch.tensor(norm if math.isfinite(norm) else math.inf, dtype=torch.float64, device=device)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return float(told)


def overflowed(norm: float) -> bool:
    """Whether moments could become infinite by a gradient of this norm."""
    return not norm < NORM_LIMIT
