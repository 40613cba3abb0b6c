"""Bytes of tensors that are alive, as torch makes and frees them."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while the mode is on, until they are freed; ``peak`` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {storage(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for made in tree_iter(out):
            if isinstance(made, torch.Tensor) and storage(made) not in {*given, *self._sizes}:
                self._add(made.untyped_storage())
        return out

    def _add(self, made: torch.UntypedStorage) -> None:
        self._sizes[made._cdata] = made.nbytes()
        self.now += made.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(made, self._free, made._cdata)

    def _free(self, at: int) -> None:
        self.now -= self._sizes.pop(at)


def storage(tensor: torch.Tensor) -> int:
    """What two views of the same memory have in common."""
    return tensor.untyped_storage()._cdata
