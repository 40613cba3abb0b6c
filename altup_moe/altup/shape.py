"""Sizes and names that the wide stream gives a model. Plain integers: planning and resharding import no torch."""

from __future__ import annotations

from altup_moe.altup.variants import Correct, find_variant, stream_row

SEQUENCE_COEFFICIENTS: dict[str, dict[str, tuple[int, ...]]] = {
    "altup": {"predict": (2,), "correct": (1,)},
    "stride_and_skip": {},
    "average_pool": {},
}
"""Learned coefficients of a strided layer and their shapes, by method (`altup_moe.altup.sequence`)."""


BRANCHES = ("self_attn", "mlp")
"""The branches of a layer in the order in which they compute, by the names of their parts in Hugging Face's models."""


def branches(level: str) -> tuple[str, ...]:
    """The steps of a layer: its branches, or "" for the whole of it."""
    return BRANCHES if level == "branch" else ("",)


def step_of(layer: int, branch: str, level: str) -> int:
    """The number of a layer's step, from 0, in the whole stack."""
    return layer * len(branches(level)) + branches(level).index(branch)


def stream_width(width: int, variant: str) -> int:
    """Blocks that travel through the layers: 1 for the control `sum`."""
    return width if find_variant(variant).blocks else 1


def has_steps(width: int, variant: str, correct: Correct) -> bool:
    """Whether layers or branches are steps that read and write a stream: of several blocks, or of one whose outputs are
    delayed. Else the layers are plain."""
    return stream_width(width, variant) > 1 or (width == 1 and correct == "delayed")


def has_projections(width: int, variant: str) -> bool:
    """Whether learned matrices stand at both ends of the stream (`altup.dynamic.expand` and `contract`)."""
    return width > 1 and find_variant(variant).projections


def has_head(width: int, variant: str, recycled: bool) -> bool:
    """Whether learned parameters collapse the blocks before the final norm (`StreamVariant.head`)."""
    return width > 1 and recycled and find_variant(variant).collapses


def sent_blocks(width: int, variant: str, correct: Correct) -> int:
    """Blocks that a pipeline stage sends to the next one: the stream's, and what its first step reads if they do not
    tell. That is its input where a step computes the next one's, else the stream without the last output."""
    row, blocks = stream_row(variant, width), stream_width(width, variant)
    if not row.reads_early(correct):
        return blocks
    return blocks + 1 if row.lagged else 2 * blocks


def segment_length(steps: int, together: int) -> int:
    """Steps between two states that full recomputation keeps, of deferred mixing: about the root of all, so that as
    many states are kept as are formed again at once. ``together``: steps that are recomputed at a time."""
    return together * max(1, round(steps**0.5 / together))


def embedding_width(hidden_size: int, width: int, recycled: bool) -> int:
    """Features of an embedding row."""
    return hidden_size if recycled else hidden_size * width


def output_width(hidden_size: int, width: int, variant: str, recycled: bool) -> int:
    """Features that the final norm and the output layer see."""
    return hidden_size if recycled else hidden_size * stream_width(width, variant)


def context_width(hidden_size: int, width: int, variant: str, cross_attention: str) -> int:
    """Features of an encoder's output, which a decoder's cross-attention reads."""
    return hidden_size * (stream_width(width, variant) if cross_attention == "wide" else 1)


def is_moe_layer(layer: int, num_experts: int, layer_freq: int) -> bool:
    """Whether layer `layer` (from 0) has experts: every layer_freq-th does."""
    return num_experts > 0 and (layer + 1) % layer_freq == 0
