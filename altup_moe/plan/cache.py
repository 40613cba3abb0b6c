"""Values that many layouts of one model have in common, so that a search computes each of them once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Value = TypeVar("Value")


class Cache:
    """Values by what they depend on.

    One cache serves one run on one cluster with one number of GPUs and one set of factors. Its layouts may differ in
    `parallel`, `train.micro_batch_size` and `train.recompute`.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Any] = {}

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """The value of `key`: what `compute` returned when the key was first asked for."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]
