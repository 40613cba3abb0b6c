"""Transfers once for each step: gradients, updated weights, and what a step reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.parallel.rank_coordinates import RankCoordinates, chunk_layers
from altup_moe.plan.buffers import buffers, shared_table
from altup_moe.plan.groups import Ranks, World
from altup_moe.plan.parameters import HeldSum
from altup_moe.plan.transfers import Operation, Transfer, TransferPhase


def gradient_transfers(
    config: RunConfig, world: World, coordinates: RankCoordinates, held: Sequence[HeldSum]
) -> Iterator[Transfer]:
    """Once for each step: gradients of all parameters over data ranks, of replicated parameters over tensor ranks, of a
    shared embedding table over its two stages; with the distributed optimizer also the updated weights. ``held``: the
    rank's parameters.
    """
    data, expert_data = world.data(coordinates), world.expert_data(coordinates)
    # Each of Megatron's two optimizers (dense, experts) gathers all weights, also on a stage without experts.
    optimizers = 2 if config.moe.num_experts else 1
    for buffer in buffers(config, held, len(data), len(expert_data)):
        ranks = expert_data if buffer.expert else data
        operation: Operation = "reduce_scatter" if config.parallel.distributed_optimizer else "all_reduce"
        yield Transfer("data", operation, ranks, buffer.calls, 4 * buffer.size, "step")
        if config.parallel.distributed_optimizer:
            part = buffer.size // len(ranks) * buffer.parameter_bytes
            calls = optimizers * buffer.calls
            yield Transfer("data", "all_gather", ranks, calls, optimizers * part, "step")
    whole = sum(h.size for h in held if h.whole)
    yield Transfer("data", "all_reduce", world.tensor(coordinates), 1, 4 * whole, "step")
    table = next((h for h in held if shared_table(config, h)), None)
    if table is not None:
        last = (config.parallel.pipeline - 1) * (world.size // config.parallel.pipeline)
        inside = coordinates.rank % (world.size // config.parallel.pipeline)
        yield Transfer("data", "all_reduce", (inside, last + inside), 1, 4 * table.size, "step")


def norm_groups(config: RunConfig, world: World, coordinates: RankCoordinates) -> list[Ranks]:
    """The groups over which the optimizers reduce their gradient norms: one for dense parameters, one for experts.

    With the distributed optimizer both are all ranks.
    """
    groups = [world.model(coordinates), *([world.expert_model(coordinates)] if config.moe.num_experts else [])]
    return [world.everyone()] * len(groups) if config.parallel.distributed_optimizer else groups


def report_transfers(config: RunConfig, world: World, coordinates: RankCoordinates) -> Iterator[Transfer]:
    """Once for each step: labels and tokens, gradient norms, losses, routing counts and expert biases."""
    moe, everyone = config.moe, world.everyone()
    phase: TransferPhase = "step"
    groups = norm_groups(config, world, coordinates)
    # The distributed optimizer reduces both norms in one call.
    for ranks in groups[:1] if config.parallel.distributed_optimizer else groups:
        yield Transfer("report", "all_reduce", ranks, 1, 4, phase)
    # The largest norm, on which all agree; labels and whether an id is no token; losses and tokens.
    yield Transfer("report", "all_reduce", everyone, 3, 8 + 16 + 16, phase)
    if moe.num_experts:
        yield Transfer("report", "all_reduce", everyone, 1, 8 * config.model.num_layers * (moe.num_experts + 3), phase)
    layers = [layer for chunk in chunk_layers(config, coordinates.pipeline) for layer in chunk.layers]
    own = sum(is_moe_layer(layer, moe.num_experts, moe.layer_freq) for layer in layers)
    # Where routers' losses are over the tokens of the step, their number.
    counted = int(own > 0 and (moe.z_loss_coeff > 0 or moe.balances_steps))
    yield Transfer("report", "all_reduce", world.data_alone(coordinates), counted, 8 * counted, phase)
    if moe.expert_bias_update_rate > 0:
        yield Transfer("report", "all_reduce", world.stage(coordinates), int(own > 0), 4 * own * moe.num_experts, phase)
