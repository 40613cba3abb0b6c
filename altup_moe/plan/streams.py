"""The wide stream of a chunk of layers: bytes that are kept of it, and the work of mixing that a step waits for.

With static weights a step keeps the blocks and a pending output, and reads and writes them in one pass. What a step
does whose weights are computed for every token its row says (`altup.step_costs`).
"""

from __future__ import annotations

from collections.abc import Sequence

from altup_moe.altup.shape import branches, has_head, has_projections, has_steps, segment_length, stream_width
from altup_moe.altup.step_costs import Kept, TokenStep, Work
from altup_moe.altup.variants import find_variant, stream_row
from altup_moe.config import RunConfig
from altup_moe.moe.backends import defers_mixing, joins_steps, walks_two_steps
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
    steps = steps_of(config, len(chunk.layers))
    starts = range(0, steps, segment_length(steps, recomputed_at_once(config)))
    return _states_bytes(config, steps, steps, starts)


def recomputing_bytes(config: RunConfig, chunk: ChunkLayers, step: int) -> float:
    """Bytes of the same when the backward pass has come to a step: what later ones started from is freed, and the
    states of its segment that it still needs are formed again."""
    steps, together = steps_of(config, len(chunk.layers)), recomputed_at_once(config)
    segment = segment_length(steps, together)
    begun = step // segment * segment
    states = {*range(0, begun + 1, segment), *range(begun, step + 1, together)}
    return sum(_states_bytes(config, steps, step + together, sorted(states)))


def recomputed_at_once(config: RunConfig) -> int:
    """Steps that are recomputed at a time: two, where two are under way at a time."""
    return 2 if walks_two_steps(config) else 1


def _states_bytes(config: RunConfig, steps: int, end: int, before: Sequence[int]) -> tuple[float, float]:
    """(an output or state for each of the first `end` steps, the rest) of a chunk of some steps, bytes.

    ``before``: the steps before which a state is there, from 0, where mixing is deferred.
    """
    a, block, later = config.altup, block_bytes(config), before[1:]
    width, row = stream_width(a.width, a.variant), stream_row(a.variant, a.width)
    end = min(end, steps)
    if not has_steps(a.width, a.variant, a.correct):
        return end * block, 0.0
    if not defers_mixing(config):
        # The state before each step: the blocks, and its input where they do not tell.
        return end * block, end * (width - 1 + row.reads_early(a.correct)) * block
    # The output of every layer but the last, which is written; the blocks that the chunk begins with; and more states.
    outputs, first = min(end, steps - 1) * block, width * block
    if token_step(config) is not None:
        # The blocks with g of each token, and a next input that is known.
        return outputs, first + len(later) * kept_bytes(config, Kept(width + row.lagged, width))
    # The blocks and the next input; delayed, that is a block. Steps that share a pass start from the same blocks. What
    # the pass reads of them, also for the second of those steps, is a row of it.
    joins = joins_steps(config)
    formed = len({step // 2 for step in later} - {0}) if joins else len(later)
    reads = joins + (width > 1 and not row.selects)
    return outputs, first + (formed * (width + reads) + len(later) * (a.correct == "next")) * block


def backward_step_bytes(config: RunConfig) -> float:
    """Bytes of the stream's gradients in a step's backward pass, and what else of the stream it holds at once."""
    a, step = config.altup, token_step(config)
    flowing = (stream_width(a.width, a.variant) + 1) * block_bytes(config)
    return flowing if step is None else flowing + kept_bytes(config, step.backward)


def recomputed_step_bytes(config: RunConfig, ends: bool) -> float:
    """Bytes that the step which is being recomputed holds of the stream, beside its state.

    ``ends``: it is its chunk's last one. What comes back to it is a message, or the gradient of a read.
    """
    step, a, deferred = token_step(config), config.altup, defers_mixing(config)
    width, block = stream_width(a.width, a.variant), block_bytes(config)
    if step is None:
        # Gradients of the state, those that come and those that go, and of the output; deferred, its own pass too.
        passes = deferred and has_steps(a.width, a.variant, a.correct)
        return ((2 + passes - (ends and passes)) * (width + passes) + 1) * block
    held = kept_bytes(config, step.kept) + kept_bytes(config, step.backward)
    comes = 0 if ends and deferred else width
    # Deferred, the stream before the step is formed again. Inline it is the state that was kept, unless fp32 is a copy.
    shared = not deferred and (step.kept.blocks > width or not _half(config))
    return held + (comes - width * shared) * block


def layer_work(config: RunConfig, step: TokenStep) -> tuple[Work, Work]:
    """(what waits for outputs, what is posted) of a layer's forward pass.

    The window is that of the layer's last step. What attention posts, the first of two, is counted as waiting: that
    its reduction over tensor ranks is a window too is left out.
    """
    waits = step.waits
    for _ in branches(config.altup.level)[1:]:
        waits += step.waits + step.posted
    return waits, step.posted
