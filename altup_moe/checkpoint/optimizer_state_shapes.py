"""Which moments an optimizer keeps of a parameter, by the parameter's shape. Pure."""

from __future__ import annotations

Shape = tuple[int, ...]

FACTORED_MIN_SIZE = 128
"""Adafactor keeps sums over rows and columns of matrices that have at least this many of both (as T5X does)."""
FACTORED_STATES = ("exp_avg_sq_row", "exp_avg_sq_col")


def state_shapes(optimizer: str, shape: Shape) -> dict[str, Shape]:
    """Shapes of the moments of a parameter of a shape, by kind.

    Args:
        optimizer: `optim.optimizer`.
    """
    if optimizer == "adamw":
        return {"exp_avg": shape, "exp_avg_sq": shape}
    if len(shape) >= 2 and min(shape[-2:]) >= FACTORED_MIN_SIZE:
        return dict(zip(FACTORED_STATES, (shape[:-1], shape[:-2] + shape[-1:]), strict=True))
    return {"exp_avg_sq": shape}
