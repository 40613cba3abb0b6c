"""All transfers of one rank in one training step, computed from the configuration: operation, group, calls, bytes.

Shapes: S positions of a context rank, B samples, D width of a layer, K blocks of the stream, T tensor ranks. Under
sequence parallelism the activations of a rank are [S / T, B, D].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from altup_moe.altup.shape import embedding_width, is_moe_layer, output_width, sent_blocks
from altup_moe.altup.variants import find_variant
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.parallel.rank_coordinates import ChunkLayers, RankCoordinates, chunk_layers
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.expert_traffic import expert_exchange, router_transfers
from altup_moe.plan.groups import Ranks, World
from altup_moe.plan.parameters import HeldSum, held_sums
from altup_moe.plan.routes import RouteCounts, balanced, local_tokens
from altup_moe.plan.transfers import Transfer, TransferKind, times
from altup_moe.plan.update_traffic import gradient_transfers, report_transfers


def check_modelled(config: RunConfig) -> None:
    """Raise ConfigError for a configuration whose transfers this module cannot compute."""
    if config.train.engine != "megatron":
        raise ConfigError("train.engine", config.train.engine, "its collectives are not modelled; megatron would fit")
    if config.moe.num_experts and config.moe.backend in ("deepspeed", "tutel"):
        fits = "its exchange is not modelled; megatron or torch would fit"
        raise ConfigError("moe.backend", config.moe.backend, fits)
    a = config.altup
    unplanned: list[tuple[bool, str, object, object]] = [
        (not config.model.architecture.planned, "model.arch", config.model.arch, "gpt"),
        (config.sequence.stride > 1, "sequence.stride", config.sequence.stride, 1),
        (a.width > 1 and not find_variant(a.variant).planned, "altup.variant", a.variant, "altup"),
        (config.optim.optimizer != "adamw", "optim.optimizer", config.optim.optimizer, "adamw"),
    ]
    for wrong, key, value, fit in unplanned:
        if wrong:
            raise ConfigError(key, value, f"is not planned yet; {fit} would fit")


def step_transfers(
    config: RunConfig, world: World, coordinates: RankCoordinates, routes: RouteCounts | None = None
) -> list[Transfer]:
    """All transfers of a rank in one step. Groups of one rank are left out.

    Args:
        routes: the experts that the tokens of every rank choose; None is balanced.
    Raises:
        ConfigError: the configuration is not modelled (`check_modelled`).
    """
    check_modelled(config)
    count = num_microbatches(config, world.size)
    found = [*_layers(config, world, coordinates, routes), *times(_ends(config, world, coordinates), count)]
    found += _pipeline(config, world, coordinates)
    return _between_ranks(found) + update_transfers(config, world, coordinates, held_sums(config, coordinates))


def _linears(
    kind: TransferKind, ranks: Ranks, shard: float, layer: int | None, ins: int = 1, outs: int = 1
) -> Iterator[Transfer]:
    """Transfers of `ins` column-parallel and `outs` row-parallel linears for one micro-batch, under SP.

    A column-parallel linear gathers its input in the forward, gathers it again for the gradient of its weight, and
    reduce-scatters the gradient of its input. A row-parallel linear does the reverse. ``shard``: bytes of the rank's
    part of the activation.
    """
    whole = shard * len(ranks)
    base = Transfer(kind, "all_gather", ranks, ins, ins * shard, layer=layer)
    yield base
    yield replace(base, operation="reduce_scatter", calls=outs, size=outs * whole)
    yield replace(base, calls=ins + outs, size=(ins + outs) * shard, phase="backward")
    yield replace(base, operation="reduce_scatter", calls=ins, size=ins * whole, phase="backward")


def _layers(
    config: RunConfig, world: World, coordinates: RankCoordinates, routes: RouteCounts | None
) -> Iterator[Transfer]:
    count, moe = num_microbatches(config, world.size), config.moe
    for chunk in chunk_layers(config, coordinates.pipeline):
        for layer in chunk.layers:
            if routes is None or not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
                yield from times(_layer(config, world, coordinates, layer, balanced(config), 0), count)
                continue
            for number in range(count):
                yield from _layer(config, world, coordinates, layer, routes, number)


def _layer(
    config: RunConfig, world: World, coordinates: RankCoordinates, layer: int, routes: RouteCounts, micro_batch: int
) -> Iterator[Transfer]:
    """Transfers of one layer for one micro-batch."""
    whole = [*attention(config, world, coordinates, layer)]
    if is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq):
        whole += router_transfers(config, world, coordinates, layer)
        whole += _shared(config, world, coordinates, layer)
        whole += expert_exchange(config, world, coordinates, layer, routes, micro_batch)
    else:
        whole += _mlp(config, world, coordinates, layer)
    yield from whole
    if config.train.recompute == "full":
        # Recomputation repeats the transfers of the forward, but for the sums of the routers' losses (all that a layer
        # reduces): Megatron computes them only while gradients are recorded.
        again = (t for t in whole if t.phase == "forward" and t.operation != "all_reduce")
        yield from (replace(t, phase="recompute") for t in again)


def layer_transfers(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> list[Transfer]:
    """A rank's transfers of one layer for one micro-batch with balanced routes. Groups of one rank are left out."""
    return _between_ranks(_layer(config, world, coordinates, layer, balanced(config), 0))


def end_transfers(config: RunConfig, world: World, coordinates: RankCoordinates) -> list[Transfer]:
    """A rank's transfers of embedding, output layer and loss for one micro-batch. Groups of one rank are left out."""
    return _between_ranks(_ends(config, world, coordinates))


def update_transfers(
    config: RunConfig, world: World, coordinates: RankCoordinates, held: Sequence[HeldSum]
) -> list[Transfer]:
    """A rank's transfers once for each step. ``held``: its parameters. Groups of one rank are left out."""
    found = [*gradient_transfers(config, world, coordinates, held), *report_transfers(config, world, coordinates)]
    return _between_ranks(found)


def _between_ranks(transfers: Iterable[Transfer]) -> list[Transfer]:
    return [t for t in transfers if len(t.ranks) > 1 and (t.calls or t.size)]


def activation_bytes(config: RunConfig) -> float:
    """Bytes of the activations of one rank, [S / T, B, D]."""
    return local_tokens(config) * config.model.hidden_size * PARAMETER_BYTES[config.train.precision]


def attention(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> Iterator[Transfer]:
    """Attention of one layer and micro-batch: its linears over tensor ranks, keys and values over context ranks."""
    yield from _linears("tensor", world.tensor(coordinates), activation_bytes(config), layer)
    m, p = config.model, config.parallel
    rows = config.train.micro_batch_size * m.seq_length // p.context
    part = rows * m.num_query_groups // p.tensor * m.head_dim * PARAMETER_BYTES[config.train.precision]
    ranks = world.context(coordinates)
    gather = Transfer("context", "all_gather", ranks, 2, 2 * part, layer=layer)
    yield gather
    if config.train.recompute == "selective":
        yield replace(gather, phase="recompute")
    yield Transfer("context", "reduce_scatter", ranks, 2, 2 * part * p.context, "backward", layer)


def _mlp(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> Iterator[Transfer]:
    return _linears("tensor", world.tensor(coordinates), activation_bytes(config), layer)


def _shared(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> Iterator[Transfer]:
    if config.shared_expert_size:
        yield from _mlp(config, world, coordinates, layer)


def _ends(config: RunConfig, world: World, coordinates: RankCoordinates) -> Iterator[Transfer]:
    """Embedding, output layer and loss for one micro-batch. Tensor ranks shard the vocabulary."""
    m, a, p = config.model, config.altup, config.parallel
    ranks, size = world.tensor(coordinates), PARAMETER_BYTES[config.train.precision]
    if len(ranks) == 1:
        return
    held = chunk_layers(config, coordinates.pipeline)
    if any(chunk.first for chunk in held):
        shard = local_tokens(config) * embedding_width(m.hidden_size, a.width, a.recycled) * size
        yield from _linears("tensor", ranks, shard, None, ins=0)
    if any(chunk.last for chunk in held):
        shard = local_tokens(config) * output_width(m.hidden_size, a.width, a.variant, a.recycled) * size
        yield from _linears("tensor", ranks, shard, None, outs=0)
        # For each token, fp32: the largest logit, the label's logit, and the sum of exponentials.
        tokens = local_tokens(config) * p.tensor
        yield Transfer("tensor", "all_reduce", ranks, 3, 3 * 4 * tokens)


def boundary_bytes(config: RunConfig) -> float:
    """Bytes that a stage sends to the next for one micro-batch: the stream, [K * S / T, B, D]."""
    return activation_bytes(config) * sent_blocks(config.altup.width, config.altup.variant, config.altup.correct)


def _pipeline(config: RunConfig, world: World, coordinates: RankCoordinates) -> Iterator[Transfer]:
    p = config.parallel
    if p.pipeline == 1:
        return
    count, size = num_microbatches(config, world.size), boundary_bytes(config)
    for chunk in chunk_layers(config, coordinates.pipeline):
        yield from _boundaries(chunk, coordinates, world, count, size)


def _boundaries(
    chunk: ChunkLayers, coordinates: RankCoordinates, world: World, count: int, size: float
) -> Iterator[Transfer]:
    if not chunk.last:
        yield Transfer("pipeline", "send", (coordinates.rank, world.neighbour(coordinates, 1)), count, count * size)
    if not chunk.first:
        yield Transfer(
            "pipeline", "send", (coordinates.rank, world.neighbour(coordinates, -1)), count, count * size, "backward"
        )
