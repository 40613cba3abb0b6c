"""Rows of the table of stream variants, as tests use them."""

from __future__ import annotations

from torch import Tensor

from altup_moe.altup.static import initial_value
from altup_moe.altup.variants import VARIANTS

STATIC = {name: row for name, row in VARIANTS.items() if row.weights is not None}
"""Variants whose layers have the same three weights for all tokens."""


def initial(variant: str, width: int, block: int, hidden_size: int = 1) -> dict[str, Tensor]:
    """Initial coefficients of a layer that computes on block `block`."""
    rows = VARIANTS[variant].coefficients.items()
    return {name: initial_value(one.initial, one.sizes(width, hidden_size), block) for name, one in rows}
