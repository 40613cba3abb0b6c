"""The wide stream of a chunk of layers: bytes that are kept of it, and the work of mixing that a step waits for.

With static weights a step keeps the blocks and a pending output, and reads and writes them in one pass. What a step
does whose weights are computed for every token its row says (`altup.step_costs`).
"""

from __future__ import annotations

from altup_moe.altup.shape import branches, has_head, has_projections, has_steps, stream_width
from altup_moe.altup.step_costs import Kept, TokenStep, Work
from altup_moe.altup.variants import find_variant, stream_row
from altup_moe.config import RunConfig
from altup_moe.moe.backends import defers_mixing, joins_steps
from altup_moe.parallel.rank_coordinates import ChunkLayers
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.routes import local_tokens


def token_step(config: RunConfig) -> TokenStep | None:
    """What a step costs whose weights are computed for every token; None where they are static or K is 1."""
    a, costs = config.altup, find_variant(config.altup.variant).costs
    if costs is None or stream_width(a.width, a.variant) == 1:
        return None
    return costs(a.width, config.model.hidden_size, _half(config), defers_mixing(config))


def _half(config: RunConfig) -> bool:
    return PARAMETER_BYTES[config.train.precision] < 4


def block_bytes(config: RunConfig) -> float:
    """Bytes of one block of a rank's tokens, [S / T, B, D]."""
    return local_tokens(config) * config.model.hidden_size * PARAMETER_BYTES[config.train.precision]


def kept_bytes(config: RunConfig, kept: Kept) -> float:
    """Bytes of what is kept for a rank's tokens of one micro-batch."""
    return kept.blocks * block_bytes(config) + 4 * (kept.numbers * local_tokens(config) + kept.matrices)


def steps_of(config: RunConfig, layers: int) -> int:
    """Steps of the stream in some layers; a plain one has one a layer."""
    a = config.altup
    return layers * len(branches(a.level)) if has_steps(a.width, a.variant, a.correct) else layers


def stream_bytes(config: RunConfig, chunk: ChunkLayers) -> float:
    """Bytes that the steps of a chunk of layers keep of the stream for one micro-batch, without recomputation."""
    a, step, steps = config.altup, token_step(config), steps_of(config, len(chunk.layers))
    width, block = stream_width(a.width, a.variant), block_bytes(config)
    if width == 1:
        # A plain stream is kept as what layers read. One whose outputs are delayed keeps what each step writes too.
        return steps * block * has_steps(a.width, a.variant, a.correct)
    if step is not None:
        return steps * kept_bytes(config, step.kept) + kept_bytes(config, step.end) + _learned_ends(config, chunk)
    if joins_steps(config):
        # A pass of two steps keeps the K blocks that it read, two outputs, and the row that came with the blocks.
        return len(chunk.layers) * (width + 3) * block
    # The mixing pass of each step keeps the K blocks that it read and the pending output.
    return steps * (width + 1) * block


def _learned_ends(config: RunConfig, chunk: ChunkLayers) -> float:
    """Bytes that learned ends of the stream keep."""
    a = config.altup
    costs = find_variant(a.variant).head_costs
    if costs is None:
        return 0.0
    each = kept_bytes(config, costs(a.width, config.model.hidden_size, _half(config)))
    if has_projections(a.width, a.variant):
        # Beside the embedding, and the blocks that are brought back.
        return chunk.first * (each + block_bytes(config)) + chunk.last * (each + a.width * block_bytes(config))
    return each if chunk.last and has_head(a.width, a.variant, a.recycled) else 0.0


def recomputed_bytes(config: RunConfig, chunk: ChunkLayers) -> tuple[float, float]:
    """(an output or state for each step, the rest of the stream) that a chunk keeps with full recomputation, bytes."""
    a, step, steps = config.altup, token_step(config), steps_of(config, len(chunk.layers))
    width, block = stream_width(a.width, a.variant), block_bytes(config)
    row = stream_row(a.variant, a.width)
    if not has_steps(a.width, a.variant, a.correct):
        return steps * block, 0.0
    if not defers_mixing(config):
        # The state before each step: the blocks, and its input where they do not tell. (That of a plain stream is the
        # state before the last write, which is kept anyway.)
        return steps * block, steps * (width - 1 + (row.reads_early(a.correct) and width > 1)) * block
    # Kept: the first state of every segment and the output of every layer. One segment is rebuilt at a time.
    rebuilt = max(1, round(steps**0.5))
    segments = -(-steps // rebuilt)
    if step is None:
        # A state is the blocks and an output; delayed, that is one of those that are kept anyway.
        return steps * block, (segments + rebuilt) * (width + (a.correct == "next")) * block
    # A state is the blocks with g of each token, and a next input that is known. The rebuilt segment's first is kept.
    state = kept_bytes(config, Kept(width + row.lagged, width))
    return steps * block, (segments + rebuilt - 1) * state


def backward_step_bytes(config: RunConfig) -> float:
    """Bytes that a step's backward pass holds at once of the stream, beside what is kept."""
    step = token_step(config)
    return 0.0 if step is None else kept_bytes(config, step.backward)


def recomputed_step_bytes(config: RunConfig) -> float:
    """Bytes that the step which is being recomputed holds of the stream, beside its state."""
    step, a = token_step(config), config.altup
    if step is None:
        # The blocks' gradients, those that come and those that go.
        width = stream_width(a.width, a.variant)
        return 2 * width * block_bytes(config) if has_steps(a.width, a.variant, a.correct) else 0.0
    width, held = a.width, kept_bytes(config, step.kept) + kept_bytes(config, step.backward)
    # Deferred, the stream before the step is formed again. Inline it is the state that was kept, unless fp32 is a copy.
    shared = not defers_mixing(config) and (step.kept.blocks > width or not _half(config))
    return held - width * block_bytes(config) if shared else held


def layer_work(config: RunConfig, step: TokenStep) -> tuple[Work, Work]:
    """(what waits for outputs, what is posted) of a layer's forward pass.

    The window is that of the layer's last step. What attention posts, the first of two, is counted as waiting: that
    its reduction over tensor ranks is a window too is left out.
    """
    waits = step.waits
    for _ in branches(config.altup.level)[1:]:
        waits += step.waits + step.posted
    return waits, step.posted
