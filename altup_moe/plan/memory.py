"""Memory of a rank by use: exact for weights, gradients and optimizer state, a model for activations.

Activations are what autograd keeps of one micro-batch, times the micro-batches that a pipeline stage holds at once.
Legend: t tokens of a tensor rank's part of the sequence, d width, e bytes of a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from altup_moe.altup.shape import is_moe_layer, output_width
from altup_moe.config import RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.moe.backends import walks_two_steps
from altup_moe.parallel.rank_coordinates import ChunkLayers, RankCoordinates, chunk_layers
from altup_moe.plan.buffers import PARAMETER_BYTES, buffers
from altup_moe.plan.groups import World
from altup_moe.plan.parameters import HeldSum, held_sums
from altup_moe.plan.routes import local_tokens
from altup_moe.plan.streams import backward_step_bytes, recomputed_bytes, recomputed_step_bytes, stream_bytes


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
    logits: float
    exchange: float
    """Buffers of rows in transit to the experts and back."""

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(vars(self).values())


def rank_memory(
    config: RunConfig, world: World, coordinates: RankCoordinates, held: Sequence[HeldSum] | None = None
) -> Memory:
    """Planned memory of a rank. ``held``: its parameters; None counts them."""
    weights, gradients, optimizer = states(config, world, coordinates, held)
    kept, stream = held_activations(config, world, coordinates)
    last = any(chunk.last for chunk in chunk_layers(config, coordinates.pipeline))
    return Memory(
        weights, gradients, optimizer, kept, stream, _logits(config) if last else 0.0, _exchange(config, coordinates)
    )


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
    if config.train.recompute == "full":
        # The backward recomputes one layer at a time and keeps its activations; two, where two are under way.
        at_once = 2 if walks_two_steps(config) else 1
        kept += at_once * max(sum(layer_parts(config, layer)) for chunk in own for layer in chunk.layers)
        stream += recomputed_step_bytes(config)
    else:
        stream += backward_step_bytes(config)
    return kept, stream


def chunk_activations(config: RunConfig, chunk: ChunkLayers) -> tuple[float, float]:
    """(activations, the stream's part) that one micro-batch keeps in a chunk of layers, bytes."""
    if config.train.recompute == "full":
        return recomputed_bytes(config, chunk)
    kept = sum(sum(layer_parts(config, layer)) for layer in chunk.layers)
    return kept + _end(config, chunk), stream_bytes(config, chunk)


def _end(config: RunConfig, chunk: ChunkLayers) -> float:
    """Bytes of the final norm. `Memory.logits` covers the loss."""
    if not chunk.last:
        return 0.0
    width = output_width(config.model.hidden_size, config.altup.width, config.altup.variant, config.altup.recycled)
    return norm_bytes(local_tokens(config), width, PARAMETER_BYTES[config.train.precision])


def layer_parts(config: RunConfig, layer: int) -> Iterator[float]:
    """Bytes that autograd keeps of one layer and micro-batch, part by part, without recomputation."""
    m, p, moe = config.model, config.parallel, config.moe
    e, t, d = PARAMETER_BYTES[config.train.precision], local_tokens(config), config.model.hidden_size
    matrices = t * p.tensor
    heads = m.num_attention_heads / p.tensor
    q, kv = heads * m.head_dim, m.num_query_groups * m.head_dim / p.tensor
    yield 2 * norm_bytes(t, d, e)
    if m.qk_layernorm:
        yield norm_bytes(matrices, q + kv, e)
    # The fused projection, rotated queries and keys, the attention output, and a scale for each query and head.
    yield matrices * (e * (3 * q + 3 * kv) + 4 * heads)
    if p.context > 1:
        # Keys and values of all context ranks instead of this rank's, and the mask.
        everywhere = m.seq_length
        yield matrices * e * kv * (2 * p.context - 1) + everywhere * everywhere / p.context
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        yield _mlp(matrices, e, m.ffn_hidden_size / p.tensor, 5)
        return
    rows = t * moe.top_k * min(1.0, moe.capacity_factor or 1.0) * p.expert_tensor
    # Scores before and after the softmax, chosen experts, positions of routes (int64) and their probabilities.
    yield t * (2 * 4 * moe.num_experts + 3 * 8 * moe.top_k) + rows * (2 * 8 + 2 * 4)
    yield rows * e * d + _mlp(rows, e, moe.ffn_hidden_size / p.expert_tensor, 6)
    if config.shared_expert_size:
        yield _mlp(matrices, e, config.shared_expert_size / p.tensor, 5)


def norm_bytes(rows: float, width: float, e: int) -> float:
    """Bytes that an RMSNorm keeps: input and normalised input in fp32, output for the next linear, scales."""
    return rows * (width * (8 + e) + 4)


def _mlp(rows: float, e: int, ffn: float, parts: int) -> float:
    """Bytes that an MLP keeps in `parts` tensors: gate, up, silu(gate) and twice their product.

    An expert also keeps the product with the route's probability.
    """
    return rows * e * parts * ffn


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


def _exchange(config: RunConfig, coordinates: RankCoordinates) -> float:
    moe, e = config.moe, PARAMETER_BYTES[config.train.precision]
    layers = [layer for chunk in chunk_layers(config, coordinates.pipeline) for layer in chunk.layers]
    if not any(is_moe_layer(layer, moe.num_experts, moe.layer_freq) for layer in layers):
        return 0.0
    routes = local_tokens(config) * moe.top_k * min(1.0, moe.capacity_factor or 1.0)
    return 2 * routes * config.model.hidden_size * e
