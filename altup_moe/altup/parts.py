"""Records of numbers that add up part by part."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self


@dataclass(frozen=True)
class Parts:
    """Base of a record whose fields are all amounts of one unit."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Self:
        return type(self)(*(factor * part for part in astuple(self)))

    @property
    def total(self) -> float:
        """All parts."""
        return sum(astuple(self))
