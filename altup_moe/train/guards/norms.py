"""Whether a gradient may be used, by the norm that it is clipped by."""

from __future__ import annotations

import math

import torch.distributed as dist
from torch import Tensor

NORM_LIMIT = 1e19
"""A gradient norm from here on counts as overflowed. Optimizers square gradients in fp32, whose largest number is
3.4e38: below this limit neither a square nor a sum of them can overflow, and second moments stay finite."""


def agreed_norm(norm: Tensor) -> Tensor:
    """The largest norm (a scalar on the device) of all ranks; inf if it is infinite or undefined on one of them.

    Collective. Nothing is read back: `train.step` reads it with the rest of the step.
    """
    told = norm.double().nan_to_num(nan=math.inf, posinf=math.inf)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return told


def overflowed(norm: float) -> bool:
    """Whether moments could become infinite by a gradient of this norm."""
    return not norm < NORM_LIMIT
