"""Which moments an optimizer keeps of a parameter, by the parameter's shape. Pure."""

from __future__ import annotations

Shape = tuple[int, ...]

FACTORED_FROM = 128
"""Adafactor keeps sums over rows and columns of matrices that have at least this many of both (as T5X does)."""
FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col")


def moment_shapes(optimizer: str, shape: Shape) -> dict[str, Shape]:
    """Shapes of the moments of a parameter of a shape, by kind.

    Args:
        optimizer: `optim.optimizer`.
    """
    if optimizer == "adamw":
        return {"exp_avg": shape, "exp_avg_sq": shape}
    if len(shape) >= 2 and min(shape[-2:]) >= FACTORED_FROM:
        return dict(zip(FACTORS, (shape[:-1], shape[:-2] + shape[-1:]), strict=True))
    return {"exp_avg_sq": shape}
