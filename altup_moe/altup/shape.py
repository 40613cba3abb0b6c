"""Sizes and names that the wide stream gives a model. Plain integers: planning and resharding import no torch."""

from __future__ import annotations

COEFFICIENTS: dict[str, tuple[str, ...]] = {
    "altup": ("predict", "correct"),
    "gemma": ("predict", "correct"),
    "round_robin": ("read", "scale"),
    "hc": ("read", "mix", "write"),
    "dynamic": ("router_norm", "router", "prediction", "correction"),
    "sum": (),
}
"""Learned coefficients of a layer, by variant (`altup.variants` and `altup.dynamic` say what they do)."""

SEQUENCE_COEFFICIENTS: dict[str, dict[str, tuple[int, ...]]] = {
    "altup": {"predict": (2,), "correct": (1,)},
    "stride_and_skip": {},
    "average_pool": {},
}
"""Learned coefficients of a strided layer and their shapes, by method (`altup_moe.altup.sequence`)."""


def stream_width(width: int, variant: str) -> int:
    """Blocks that really travel through the layers: 1 for the control `sum`."""
    return 1 if variant == "sum" else width


def has_projections(width: int, variant: str) -> bool:
    """Whether learned matrices stand at both ends of the stream (`altup.dynamic.expand` and `contract`)."""
    return variant == "dynamic" and width > 1


def coefficient_shape(name: str, width: int, hidden_size: int) -> tuple[int, ...]:
    """Shape of a coefficient of a stream of K = `width` blocks of `hidden_size` features."""
    k = width
    others: dict[str, tuple[int, ...]] = {
        "predict": (k, k),
        "mix": (k, k),
        "scale": (1,),
        "router_norm": (hidden_size,),
        "router": (k, hidden_size),
        "prediction": (k * k, k),
        "correction": (k, k),
    }
    return others.get(name, (k,))


def embedding_width(hidden_size: int, width: int, recycled: bool) -> int:
    """Features of an embedding row."""
    return hidden_size if recycled else hidden_size * width


def output_width(hidden_size: int, width: int, variant: str, recycled: bool) -> int:
    """Features that the final norm and the output layer see."""
    return hidden_size if recycled or variant == "sum" else hidden_size * width


def context_width(hidden_size: int, width: int, variant: str, cross_attention: str) -> int:
    """Features of an encoder's output, which a decoder's cross-attention reads."""
    return hidden_size * (stream_width(width, variant) if cross_attention == "wide" else 1)


def is_moe_layer(layer: int, num_experts: int, layer_freq: int) -> bool:
    """Whether layer `layer` (from 0) has experts: every layer_freq-th does."""
    return num_experts > 0 and (layer + 1) % layer_freq == 0
