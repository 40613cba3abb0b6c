"""Sizes and names that the wide stream gives a model. Plain integers: planning and resharding import no torch."""

from __future__ import annotations

COEFFICIENTS: dict[str, tuple[str, ...]] = {
    "altup": ("predict", "correct"),
    "gemma": ("predict", "correct"),
    "round_robin": ("read", "scale"),
    "sum": (),
}
"""Learned coefficients of a layer, by variant (`altup_moe.altup.variants` says what they do)."""


def stream_width(width: int, variant: str) -> int:
    """Blocks that really travel through the layers: 1 for the control `sum`."""
    return 1 if variant == "sum" else width


def coefficient_shape(name: str, width: int) -> tuple[int, ...]:
    """Shape of a coefficient of a stream of K = `width` blocks."""
    return {"predict": (width, width), "scale": (1,)}.get(name, (width,))


def embedding_width(hidden_size: int, width: int, recycled: bool) -> int:
    """Features of an embedding row."""
    return hidden_size if recycled else hidden_size * width


def output_width(hidden_size: int, width: int, variant: str, recycled: bool) -> int:
    """Features that the final norm and the output layer see."""
    return hidden_size if recycled or variant == "sum" else hidden_size * width


def is_moe_layer(layer: int, num_experts: int, layer_freq: int) -> bool:
    """Whether layer `layer` (from 0) has experts: every layer_freq-th does."""
    return num_experts > 0 and (layer + 1) % layer_freq == 0
