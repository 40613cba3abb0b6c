"""CPU memory that an asynchronous save copies tensors into and writes the files from.

Allocating new pages takes longer than the copy itself, so the buffer is kept from one save to the next.
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
"""Number of threads that copy tensors."""


class StagingBuffer:
    """One CPU tensor for each tensor that this rank writes; every save reuses them."""

    def __init__(self) -> None:
        self._buffers: dict[NamedSlice, Tensor] = {}

    def stage(self, tensors: Mapping[NamedSlice, Tensor]) -> dict[NamedSlice, Tensor]:
        """Copy `tensors` into the buffer. The copies are valid until the same slices are staged again."""
        for part, tensor in tensors.items():
            if part not in self._buffers:
                self._buffers[part] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        pairs = [(self._buffers[part], tensor) for part, tensor in tensors.items()]
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            list(pool.map(_copy, [pairs[first::COPY_THREADS] for first in range(COPY_THREADS)]))
        return {part: self._buffers[part] for part in tensors}


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each (target, source). numpy copies CPU tensors: torch would start its own threads for every tensor."""
    for target, source in pairs:
        if source.device.type == "cpu":
            np.copyto(items(target), items(source))
        else:
            target.copy_(source)
