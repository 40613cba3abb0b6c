"""Memory of a rank by use: exact for weights, gradients and optimizer state, a model for activations.

Activations are what autograd keeps of one micro-batch, times the micro-batches that a pipeline stage holds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from altup_moe.altup.shape import output_width
from altup_moe.config import RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.parallel.rank_coordinates import ChunkLayers, RankCoordinates, chunk_layers
from altup_moe.plan.activations import norm_bytes, step_activations
from altup_moe.plan.buffers import PARAMETER_BYTES, buffers
from altup_moe.plan.groups import World
from altup_moe.plan.parameters import HeldSum, held_sums
from altup_moe.plan.routes import local_tokens
from altup_moe.plan.streams import (
    backward_step_bytes,
    recomputed_at_once,
    recomputed_bytes,
    recomputed_step_bytes,
    recomputing_bytes,
    stream_bytes,
)
from altup_moe.plan.traffic import boundary_bytes


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """What autograd keeps of all micro-batches in flight, without the stream."""
    stream: float
    """What mixing keeps in addition: the blocks of the wide stream, pending outputs, weights of every token."""
    messages: float
    """Streams and their gradients on the way between pipeline stages that the schedule holds while a pass runs."""
    logits: float
    """The most that the loss holds."""
    layer: float
    """The most that one layer's backward pass holds besides: its own activations where they are recomputed, gradients,
    rows in transit to the experts and back; or what a forward pass that ends does."""

    @property
    def total(self) -> float:
        """The sum of all parts. When the loss is there, no layer's backward pass runs."""
        lasting = self.weights + self.gradients + self.optimizer + self.activations + self.stream + self.messages
        return lasting + max(self.logits, self.layer)


def rank_memory(
    config: RunConfig, world: World, coordinates: RankCoordinates, held: Sequence[HeldSum] | None = None
) -> Memory:
    """Planned memory of a rank. ``held``: its parameters; None counts them."""
    kept, stream = held_activations(config, world, coordinates)
    chunks = chunk_layers(config, coordinates.pipeline)
    logits = _logits(config) if any(chunk.last for chunk in chunks) else 0.0
    messages, ending = _messages(config, chunks)
    layer = max(ending, *(_backward(config, chunk) for chunk in chunks))
    return Memory(*states(config, world, coordinates, held), kept, stream, messages, logits, layer)


def _messages(config: RunConfig, chunks: Sequence[ChunkLayers]) -> tuple[float, float]:
    """(what stays while a pass runs, what else is there when a forward pass ends) of messages between stages, bytes.

    Megatron's schedules: 1F1B keeps the gradient that came from the next stage and the one that went to the stage
    before until others take their place. The interleaved one also has an output that is sent after the backward pass.
    A chunk that ends has its blocks and what it sends of them.
    """
    p, size = config.parallel, boundary_bytes(config)
    if p.pipeline == 1:
        return 0.0, 0.0
    if p.virtual_pipeline > 1:
        return 3 * size, 0.0
    (chunk,) = chunks
    return size * ((not chunk.first) + (not chunk.last)), 2 * size * (not chunk.last)


def _backward(config: RunConfig, chunk: ChunkLayers) -> float:
    """Bytes that the backward pass of a chunk's layer holds at its most, beside what is kept before it."""
    steps = [step for layer in chunk.layers for step in step_activations(config, layer)]
    if config.train.recompute != "full":
        # The last layer is the first one. The final norm's part is free by then.
        return max(0.0, steps[-1].gradients + backward_step_bytes(config) - _end(config, chunk))
    kept, at_once, most = sum(recomputed_bytes(config, chunk)), recomputed_at_once(config), 0.0
    for first in range(0, len(steps), at_once):
        window = steps[first : first + at_once]
        stream = recomputing_bytes(config, chunk, first) - kept
        stream += recomputed_step_bytes(config, ends=first + at_once >= len(steps))
        most = max(most, sum(s.kept for s in window) + max(s.gradients for s in window) + stream)
    return most


def states(
    config: RunConfig, world: World, coordinates: RankCoordinates, held: Sequence[HeldSum] | None = None
) -> tuple[float, float, float]:
    """(weights, gradients, optimizer state), bytes. ``held``: the rank's parameters; None counts them.

    Gradients and both moments are fp32. For bf16 weights the optimizer keeps fp32 copies.
    """
    own, p = PARAMETER_BYTES[config.train.precision], config.parallel
    held = held_sums(config, coordinates) if held is None else held
    data, expert_data = len(world.data(coordinates)), len(world.expert_data(coordinates))
    weights = sum(h.size * (4 if h.coefficient else own) for h in held)

    def shared(each: Callable[[bool], float]) -> float:
        return sum(h.size * each(h.coefficient) / (expert_data if h.expert else data) for h in held)

    if config.train.engine == "deepspeed":
        # ZeRO always keeps fp32 copies. Stage 2 also shards gradients, stage 3 also weights.
        stage = p.zero_stage
        gradients = shared(lambda _: 4.0) if stage >= 2 else 4.0 * sum(h.size for h in held)
        kept = shared(lambda coefficient: 4.0 if coefficient else own) if stage == 3 else weights
        return kept, gradients, shared(lambda _: 12.0)
    gradients = 4.0 * sum(b.size for b in buffers(config, held, data, expert_data))

    def moments(coefficient: bool) -> float:
        return 8.0 if own == 4 or coefficient else 12.0

    whole = sum(h.size * moments(h.coefficient) for h in held)
    return weights, gradients, shared(moments) if p.distributed_optimizer else whole


def micro_batches_in_flight(config: RunConfig, world_size: int, stage: int) -> int:
    """Forward passes that a stage completes before its first backward: its warm-up and one more."""
    p, count = config.parallel, num_microbatches(config, world_size)
    if p.virtual_pipeline == 1:
        return min(count, p.pipeline - stage)
    return min(count * p.virtual_pipeline, 2 * (p.pipeline - stage - 1) + (p.virtual_pipeline - 1) * p.pipeline + 1)


def held_activations(config: RunConfig, world: World, coordinates: RankCoordinates) -> tuple[float, float]:
    """(activations, the stream's part) of all micro-batches in flight, bytes."""
    own, flying = (
        chunk_layers(config, coordinates.pipeline),
        micro_batches_in_flight(config, world.size, coordinates.pipeline),
    )
    # The interleaved schedule runs `pipeline` micro-batches through one chunk before it goes to the next chunk.
    turns = [0] * len(own)
    for index in range(flying):
        turns[index // config.parallel.pipeline % len(own) if len(own) > 1 else 0] += 1
    kept = stream = 0.0
    for chunk, times in zip(own, turns, strict=True):
        layers, blocks = chunk_activations(config, chunk)
        kept, stream = kept + times * layers, stream + times * blocks
    return kept, stream


def chunk_activations(config: RunConfig, chunk: ChunkLayers) -> tuple[float, float]:
    """(activations, the stream's part) that one micro-batch keeps in a chunk of layers, bytes."""
    if config.train.recompute == "full":
        return recomputed_bytes(config, chunk)
    kept = sum(step.kept for layer in chunk.layers for step in step_activations(config, layer))
    return kept + _end(config, chunk), stream_bytes(config, chunk)


def _end(config: RunConfig, chunk: ChunkLayers) -> float:
    """Bytes of the final norm. `Memory.logits` covers the loss."""
    if not chunk.last:
        return 0.0
    width = output_width(config.model.hidden_size, config.altup.width, config.altup.variant, config.altup.recycled)
    return norm_bytes(local_tokens(config), width, PARAMETER_BYTES[config.train.precision])


def _vocabulary_rows(config: RunConfig) -> float:
    """Numbers in the logits of this rank for one micro-batch."""
    return local_tokens(config) * config.model.vocab_size


def kept_by_loss(config: RunConfig) -> float:
    """Bytes that autograd keeps of the loss: the exponentials of the logits, fp32. In chunks it keeps what the output
    layer reads, of all tensor ranks, and makes a chunk's logits again."""
    if config.train.loss_chunk is None:
        return 4 * _vocabulary_rows(config)
    m, a, p = config.model, config.altup, config.parallel
    gathered = local_tokens(config) * p.tensor if p.tensor > 1 else 0
    width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
    return gathered * width * PARAMETER_BYTES[config.train.precision]


def _logits(config: RunConfig) -> float:
    """Bytes at the start of the loss's backward: logits as computed and in fp32, exponentials, and the gradient."""
    e, chunk = PARAMETER_BYTES[config.train.precision], config.train.loss_chunk
    positions = config.model.seq_length // config.parallel.context
    at_once = 1.0 if chunk is None else min(1.0, chunk / positions)
    return at_once * _vocabulary_rows(config) * (12 + (e if e != 4 else 0))
