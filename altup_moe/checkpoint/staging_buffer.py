"""The copy that an asynchronous save writes from, in memory that stays for the next one.

To fault new memory in costs more than the copying, so a run's copies keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.tensors import items
from altup_moe.checkpoint.write import NamedSlice

COPY_THREADS = 2
"""Tensors that are copied at a time."""


class StagingBuffer:
    """Copies of a rank's tensors, the same parts each time."""

    def __init__(self) -> None:
        self._kept: dict[NamedSlice, Tensor] = {}

    def take(self, tensors: Mapping[NamedSlice, Tensor]) -> dict[NamedSlice, Tensor]:
        """Copies of `tensors`, on the CPU; they hold until the same parts are taken again."""
        for part, tensor in tensors.items():
            if part not in self._kept:
                self._kept[part] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        pairs = [(self._kept[part], tensor) for part, tensor in tensors.items()]
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            list(pool.map(_copy, [pairs[first::COPY_THREADS] for first in range(COPY_THREADS)]))
        return {part: self._kept[part] for part in tensors}


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """By numpy on a CPU: torch would wake its own threads for each tensor."""
    for copy, tensor in pairs:
        if tensor.device.type == "cpu":
            np.copyto(items(copy), items(tensor))
        else:
            copy.copy_(tensor)
