"""Which state tensors an optimizer keeps for a parameter, and their shapes. Pure."""

from __future__ import annotations

Shape = tuple[int, ...]

FACTORED_MIN_SIZE = 128
"""Adafactor factors the second moment of matrices that have at least this many rows and columns (as T5X does)."""
FACTORED_STATES = ("exp_avg_sq_row", "exp_avg_sq_col")


def state_shapes(optimizer: str, shape: Shape) -> dict[str, Shape]:
    """State name (``exp_avg``, ``exp_avg_sq``, ...) -> shape, for a parameter of shape `shape`.

    Args:
        optimizer: `optim.optimizer`: ``adamw`` or ``adafactor``.
    """
    if optimizer == "adamw":
        return {"exp_avg": shape, "exp_avg_sq": shape}
    if len(shape) >= 2 and min(shape[-2:]) >= FACTORED_MIN_SIZE:
        return dict(zip(FACTORED_STATES, (shape[:-1], shape[:-2] + shape[-1:]), strict=True))
    return {"exp_avg_sq": shape}
