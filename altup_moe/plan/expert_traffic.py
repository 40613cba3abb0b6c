"""Transfers of a layer of experts: the router's reductions, dispatch and combine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from altup_moe.config import RunConfig
from altup_moe.parallel.rank_coordinates import RankCoordinates
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.groups import Ranks, World
from altup_moe.plan.routes import RouteCounts, local_tokens
from altup_moe.plan.transfers import Transfer


def router_transfers(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> Iterator[Transfer]:
    """Tokens and routes for the routers' losses; with a capacity also probabilities and routing map (all fp32)."""
    moe, ranks = config.moe, world.tensor_context(coordinates)
    if moe.aux_loss_coeff or moe.z_loss_coeff:
        yield Transfer("expert", "all_reduce", ranks, 1, 4 * (1 + moe.num_experts), layer=layer)
    if moe.capacity_factor is not None:
        yield Transfer("expert", "all_gather", ranks, 2, 2 * 4 * local_tokens(config) * moe.num_experts, layer=layer)


def expert_exchange(
    config: RunConfig, world: World, coordinates: RankCoordinates, layer: int, routes: RouteCounts, micro_batch: int
) -> Iterator[Transfer]:
    """Dispatch and combine of the routes of one micro-batch, and their gradients."""
    if config.moe.dispatcher == "allgather":
        yield from _gathered(config, world, coordinates, layer)
        return
    moe, p = config.moe, config.parallel
    local = moe.num_experts // p.expert
    halves = 2 if config.overlap.microbatch_halves else 1
    group, both = world.expert(coordinates), world.expert_and_tensor(coordinates)
    counts = {rank: routes(layer, rank, micro_batch) for rank in both}
    yield Transfer("expert", "all_gather", both, halves, halves * 8 * moe.num_experts, layer=layer)
    row = config.model.hidden_size * PARAMETER_BYTES[config.train.precision]
    if len(group) > 1:
        for index, other in enumerate(group):
            if other == coordinates.rank:
                continue
            out = sum(counts[coordinates.rank][index * local : (index + 1) * local])
            back = sum(counts[other][coordinates.expert * local : (coordinates.expert + 1) * local])
            pair = (coordinates.rank, other)
            # Rows and probabilities (fp32) are sent to the expert, rows come back. The backward sends the reverse.
            base = Transfer("expert", "all_to_all", pair, 2 * halves, out * (row + 4), layer=layer)
            yield base
            yield replace(base, calls=halves, size=back * row)
            yield replace(base, calls=halves, size=out * row, phase="backward")
            yield replace(base, calls=2 * halves, size=back * (row + 4), phase="backward")
    sharing = world.expert_tensor(coordinates)
    if len(sharing) > 1:
        mine = range(coordinates.expert * local, (coordinates.expert + 1) * local)
        arrived = {}
        for rank in sharing:
            senders = world.expert(world.all_coordinates[rank])
            arrived[rank] = sum(counts[sender][expert] for sender in senders for expert in mine)
        yield from _sharing(config, sharing, arrived, coordinates.rank, row, layer)


def _sharing(
    config: RunConfig, ranks: Ranks, arrived: dict[int, float], rank: int, row: int, layer: int
) -> Iterator[Transfer]:
    """Expert-tensor ranks gather each other's rows and reduce-scatter their outputs.

    Every part counts as large as the largest, because gloo needs equal parts (`parallel.cpu`). With balanced routes all
    parts are equal anyway.
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


def _gathered(config: RunConfig, world: World, coordinates: RankCoordinates, layer: int) -> Iterator[Transfer]:
    """The all-gather dispatcher: it sends every token to every rank and sums the outputs in fp32."""
    ranks, tokens, experts = world.expert_and_tensor(coordinates), local_tokens(config), config.moe.num_experts
    sizes = (
        tokens * experts,
        tokens * experts * 4,
        tokens * config.model.hidden_size * PARAMETER_BYTES[config.train.precision],
    )
    gather = Transfer("expert", "all_gather", ranks, 3, sum(sizes), layer=layer)
    n = len(ranks)
    outputs = 4 * tokens * config.model.hidden_size
    yield gather
    yield replace(gather, operation="reduce_scatter", calls=1, size=outputs * n)
    yield replace(gather, calls=1, size=outputs, phase="backward")
    yield replace(gather, operation="reduce_scatter", calls=2, size=(sizes[1] + sizes[2]) * n, phase="backward")
