"""Numbers of the host, put on the device without waiting for it.

`torch.tensor(values, device="cuda")` copies from memory that is not pinned, and waits until all that the device was
given before is done: the host falls back behind it, once for each such line of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def on_device(values: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers (or rows of them) as a tensor on the device; the copy waits in the device's queue, not the host."""
    # torch keeps the pinned memory until the copy is over.
    held = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)
