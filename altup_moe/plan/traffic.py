"""Every collective of one training step of a rank, from the configuration: operation, group, calls, bytes.

Shapes: S positions of a context rank, B samples, D width of a layer, K blocks of the stream, V vocabulary, T tensor
ranks. Under sequence parallelism a rank's activations are [S / T, B, D].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from altup_moe.altup.shape import embedding_width, is_moe_layer, output_width, stream_width
from altup_moe.altup.variants import find_variant
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.parallel.rank_coordinates import Chunk, Place, chunks
from altup_moe.plan.buffers import PARAMETER_BYTES, buffers, shared_table
from altup_moe.plan.groups import Ranks, World
from altup_moe.plan.parameters import held_parameters
from altup_moe.plan.routes import Routes, balanced, local_tokens
from altup_moe.plan.transfers import Kind, Operation, Phase, Transfer, times


def check_modelled(config: RunConfig) -> None:
    """Raise ConfigError for what the plan has no arithmetic for."""
    if config.train.engine != "megatron":
        raise ConfigError("train.engine", config.train.engine, "its collectives are not modelled; megatron would fit")
    if config.moe.num_experts and config.moe.backend in ("deepspeed", "tutel"):
        fits = "its exchange is not modelled; megatron or torch would fit"
        raise ConfigError("moe.backend", config.moe.backend, fits)
    a = config.altup
    newer: list[tuple[bool, str, object, object]] = [
        (not config.model.architecture.planned, "model.arch", config.model.arch, "gpt"),
        (config.sequence.stride > 1, "sequence.stride", config.sequence.stride, 1),
        (a.width > 1 and not find_variant(a.variant).planned, "altup.variant", a.variant, "altup"),
        (config.optim.optimizer != "adamw", "optim.optimizer", config.optim.optimizer, "adamw"),
    ]
    for wrong, key, value, fit in newer:
        if wrong:
            raise ConfigError(key, value, f"is not planned yet; {fit} would fit")


def step_transfers(config: RunConfig, world: World, place: Place, routes: Routes | None = None) -> list[Transfer]:
    """What a rank takes part in during one step. Groups of one rank are left out.

    Args:
        routes: what every rank's tokens choose; None is balanced.
    """
    check_modelled(config)
    found = [*_layers(config, world, place, routes), *_ends(config, world, place)]
    found += [*_pipeline(config, world, place), *_gradients(config, world, place), *_reports(config, world, place)]
    return [t for t in found if len(t.ranks) > 1 and (t.calls or t.size)]


def _linears(
    kind: Kind, ranks: Ranks, shard: float, layer: int | None, ins: int = 1, outs: int = 1
) -> Iterator[Transfer]:
    """Column-parallel (`ins`) and row-parallel (`outs`) linears of a micro-batch under sequence parallelism.

    A column-parallel one gathers its input, gathers it again for its weight's gradient, and scatters the sum of its
    input's gradients; a row-parallel one mirrors that. ``shard``: bytes of a rank's part of the activation.
    """
    whole = shard * len(ranks)
    base = Transfer(kind, "all_gather", ranks, ins, ins * shard, layer=layer)
    yield base
    yield replace(base, operation="reduce_scatter", calls=outs, size=outs * whole)
    yield replace(base, calls=ins + outs, size=(ins + outs) * shard, phase="backward")
    yield replace(base, operation="reduce_scatter", calls=ins, size=ins * whole, phase="backward")


def _layers(config: RunConfig, world: World, place: Place, routes: Routes | None) -> Iterator[Transfer]:
    count, moe = num_microbatches(config, world.size), config.moe
    for chunk in chunks(config, place.pipeline):
        for layer in chunk.layers:
            experts = is_moe_layer(layer, moe.num_experts, moe.layer_freq)
            per_batch = [*attention(config, world, place, layer)]
            per_batch += [] if experts else _mlp(config, world, place, layer)
            whole = list(times(per_batch, count))
            if experts:
                whole += times(_router(config, world, place, layer), count)
                whole += times(_shared(config, world, place, layer), count)
                if routes is None:
                    whole += times(exchange(config, world, place, layer, balanced(config), 0), count)
                else:
                    whole += [t for n in range(count) for t in exchange(config, world, place, layer, routes, n)]
            yield from whole
            if config.train.recompute == "full":
                # A recomputed layer's forward communicates again.
                yield from (replace(t, phase="recompute") for t in whole if t.phase == "forward")


def _shard(config: RunConfig) -> float:
    """Bytes of one rank's activation [S / T, B, D]."""
    return local_tokens(config) * config.model.hidden_size * PARAMETER_BYTES[config.train.precision]


def attention(config: RunConfig, world: World, place: Place, layer: int) -> Iterator[Transfer]:
    """One layer's attention, one micro-batch: linears over tensor ranks; keys and values over context ranks."""
    yield from _linears("tensor", world.tensor(place), _shard(config), layer)
    m, p = config.model, config.parallel
    rows = config.train.micro_batch_size * m.seq_length // p.context
    part = rows * m.num_query_groups // p.tensor * m.head_dim * PARAMETER_BYTES[config.train.precision]
    ranks = world.context(place)
    gather = Transfer("context", "all_gather", ranks, 2, 2 * part, layer=layer)
    yield gather
    if config.train.recompute == "selective":
        yield replace(gather, phase="recompute")
    yield Transfer("context", "reduce_scatter", ranks, 2, 2 * part * p.context, "backward", layer)


def _mlp(config: RunConfig, world: World, place: Place, layer: int) -> Iterator[Transfer]:
    return _linears("tensor", world.tensor(place), _shard(config), layer)


def _shared(config: RunConfig, world: World, place: Place, layer: int) -> Iterator[Transfer]:
    if config.shared_expert_size:
        yield from _mlp(config, world, place, layer)


def _router(config: RunConfig, world: World, place: Place, layer: int) -> Iterator[Transfer]:
    """Counts of the load-balancing loss (int64), and with a capacity probabilities and map (as fp32)."""
    moe, ranks = config.moe, world.tensor_context(place)
    if moe.aux_loss_coeff > 0:
        yield Transfer("expert", "all_reduce", ranks, 1, 8 * moe.num_experts, layer=layer)
    if moe.capacity_factor is not None:
        yield Transfer("expert", "all_gather", ranks, 2, 2 * 4 * local_tokens(config) * moe.num_experts, layer=layer)


def exchange(
    config: RunConfig, world: World, place: Place, layer: int, routes: Routes, micro_batch: int
) -> Iterator[Transfer]:
    """Dispatch and combine of one micro-batch's routes, and their gradients."""
    if config.moe.dispatcher == "allgather":
        yield from _gathered(config, world, place, layer)
        return
    moe, p = config.moe, config.parallel
    local = moe.num_experts // p.expert
    halves = 2 if config.overlap.microbatch_halves else 1
    group, both = world.expert(place), world.expert_and_tensor(place)
    counts = {rank: routes(layer, rank, micro_batch) for rank in both}
    yield Transfer("expert", "all_gather", both, halves, halves * 8 * moe.num_experts, layer=layer)
    row = config.model.hidden_size * PARAMETER_BYTES[config.train.precision]
    if len(group) > 1:
        for index, other in enumerate(group):
            if other == place.rank:
                continue
            out = sum(counts[place.rank][index * local : (index + 1) * local])
            back = sum(counts[other][place.expert * local : (place.expert + 1) * local])
            pair = (place.rank, other)
            # Rows and probabilities (fp32) go out; rows come back. Gradients travel the other way.
            base = Transfer("expert", "all_to_all", pair, 2 * halves, out * (row + 4), layer=layer)
            yield base
            yield replace(base, calls=halves, size=back * row)
            yield replace(base, calls=halves, size=out * row, phase="backward")
            yield replace(base, calls=2 * halves, size=back * (row + 4), phase="backward")
    sharing = world.expert_tensor(place)
    if len(sharing) > 1:
        mine = range(place.expert * local, (place.expert + 1) * local)
        arrived = {}
        for rank in sharing:
            senders = world.expert(world.places[rank])
            arrived[rank] = sum(counts[sender][expert] for sender in senders for expert in mine)
        yield from _sharing(config, sharing, arrived, place.rank, row, layer)


def _sharing(
    config: RunConfig, ranks: Ranks, arrived: dict[int, float], rank: int, row: int, layer: int
) -> Iterator[Transfer]:
    """Ranks that share an expert's matrices gather each other's rows, and scatter the sums of their outputs.

    Counted with every part as large as the largest, which is what gloo needs (`parallel.cpu`); with balanced routes all
    are as large.
    """
    most = max(arrived.values())
    halves = 2 if config.overlap.microbatch_halves else 1
    for size, is_row in ((most * row, True), (most * 4, False)):
        gather = Transfer("expert", "all_gather", ranks, halves, size, layer=layer)
        scatter = replace(gather, operation="reduce_scatter", size=size * len(ranks))
        yield gather
        yield replace(scatter, phase="backward")
        if is_row:
            yield scatter
            yield replace(gather, phase="backward")


def _gathered(config: RunConfig, world: World, place: Place, layer: int) -> Iterator[Transfer]:
    """The all-gather dispatcher: every token to every rank; outputs are summed in fp32."""
    ranks, tokens, experts = world.expert_and_tensor(place), local_tokens(config), config.moe.num_experts
    sizes = (tokens * experts, tokens * experts * 4, _shard(config))
    gather = Transfer("expert", "all_gather", ranks, 3, sum(sizes), layer=layer)
    n = len(ranks)
    outputs = 4 * tokens * config.model.hidden_size
    yield gather
    yield replace(gather, operation="reduce_scatter", calls=1, size=outputs * n)
    yield replace(gather, calls=1, size=outputs, phase="backward")
    yield replace(gather, operation="reduce_scatter", calls=2, size=(sizes[1] + sizes[2]) * n, phase="backward")


def _ends(config: RunConfig, world: World, place: Place) -> Iterator[Transfer]:
    """Embedding, output layer and the loss over a vocabulary that tensor ranks share."""
    count, m, a, p = num_microbatches(config, world.size), config.model, config.altup, config.parallel
    ranks, size = world.tensor(place), PARAMETER_BYTES[config.train.precision]
    if len(ranks) == 1:
        return
    held = chunks(config, place.pipeline)
    if any(chunk.first for chunk in held):
        shard = local_tokens(config) * embedding_width(m.hidden_size, a.width, a.recycled) * size
        yield from times(_linears("tensor", ranks, shard, None, ins=0), count)
    if any(chunk.last for chunk in held):
        shard = local_tokens(config) * output_width(m.hidden_size, a.width, a.variant, a.recycled) * size
        yield from times(_linears("tensor", ranks, shard, None, outs=0), count)
        # Largest logit, the label's, and the sum of exponentials of every token, fp32.
        tokens = local_tokens(config) * p.tensor
        yield Transfer("tensor", "all_reduce", ranks, 3 * count, 3 * 4 * tokens * count)


def boundary_bytes(config: RunConfig) -> float:
    """What a stage sends to the next for one micro-batch: the stream [K * S / T, B, D]."""
    return _shard(config) * stream_width(config.altup.width, config.altup.variant)


def _pipeline(config: RunConfig, world: World, place: Place) -> Iterator[Transfer]:
    p = config.parallel
    if p.pipeline == 1:
        return
    count, size = num_microbatches(config, world.size), boundary_bytes(config)
    for chunk in chunks(config, place.pipeline):
        yield from _boundaries(chunk, place, world, count, size)


def _boundaries(chunk: Chunk, place: Place, world: World, count: int, size: float) -> Iterator[Transfer]:
    if not chunk.last:
        yield Transfer("pipeline", "send", (place.rank, world.neighbour(place, 1)), count, count * size)
    if not chunk.first:
        yield Transfer("pipeline", "send", (place.rank, world.neighbour(place, -1)), count, count * size, "backward")


def _gradients(config: RunConfig, world: World, place: Place) -> Iterator[Transfer]:
    """Once a step: gradients over data ranks, what tensor ranks hold whole over them, a table that two stages share."""
    data, expert_data = world.data(place), world.expert_data(place)
    held = list(held_parameters(config, place))
    # Each of Megatron's two optimizers (dense, experts) gathers all weights anew, also on a stage without experts.
    optimizers = 2 if config.moe.num_experts else 1
    for buffer in buffers(config, place, len(data), len(expert_data)):
        ranks = expert_data if buffer.expert else data
        operation: Operation = "reduce_scatter" if config.parallel.distributed_optimizer else "all_reduce"
        yield Transfer("data", operation, ranks, buffer.calls, 4 * buffer.size, "step")
        if config.parallel.distributed_optimizer:
            part = buffer.size // len(ranks) * buffer.parameter_bytes
            calls = optimizers * buffer.calls
            yield Transfer("data", "all_gather", ranks, calls, optimizers * part, "step")
    whole = sum(h.size for h in held if h.whole)
    yield Transfer("data", "all_reduce", world.tensor(place), 1, 4 * whole, "step")
    table = next((h for h in held if shared_table(config, h)), None)
    if table is not None:
        last = (config.parallel.pipeline - 1) * (world.size // config.parallel.pipeline)
        inside = place.rank % (world.size // config.parallel.pipeline)
        yield Transfer("data", "all_reduce", (inside, last + inside), 1, 4 * table.size, "step")


def norm_groups(config: RunConfig, world: World, place: Place) -> list[Ranks]:
    """The groups of each optimizer's gradient norm: dense parameters', and with experts theirs.

    Where state is sharded both are everyone.
    """
    groups = [world.model(place), *([world.expert_model(place)] if config.moe.num_experts else [])]
    return [world.everyone()] * len(groups) if config.parallel.distributed_optimizer else groups


def _reports(config: RunConfig, world: World, place: Place) -> Iterator[Transfer]:
    """Once a step: gradient norms, whether they are finite, losses, routing counts, expert biases."""
    moe, everyone = config.moe, world.everyone()
    phase: Phase = "step"
    groups = norm_groups(config, world, place)
    # Sharded, both are one norm.
    for ranks in groups[:1] if config.parallel.distributed_optimizer else groups:
        yield Transfer("report", "all_reduce", ranks, 1, 4, phase)
    yield Transfer("report", "all_reduce", everyone, 1, 4, phase)
    yield Transfer("report", "all_reduce", everyone, 1, 16, phase)
    if moe.num_experts:
        yield Transfer("report", "all_reduce", everyone, 1, 8 * config.model.num_layers * (moe.num_experts + 3), phase)
    if moe.expert_bias_update_rate > 0:
        layers = [layer for chunk in chunks(config, place.pipeline) for layer in chunk.layers]
        own = sum(is_moe_layer(layer, moe.num_experts, moe.layer_freq) for layer in layers)
        yield Transfer("report", "all_reduce", world.stage(place), int(own > 0), 4 * own * moe.num_experts, phase)
