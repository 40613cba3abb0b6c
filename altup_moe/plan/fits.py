"""Refuse a run that its machine cannot hold, before anything of it is built.

The planner's sum is a model, so only what is far too large is refused: a run that nearly fits is the user's to try.
"""

from __future__ import annotations

from altup_moe.config import RunConfig, UserError
from altup_moe.config.checks import num_microbatches
from altup_moe.config.units import GIB
from altup_moe.plan.groups import World
from altup_moe.plan.memory import rank_memory, states

SURE = 4.0
"""Planned activations count only beyond this multiple of the memory; weights and optimizer state are exact."""
_TOKEN_BYTES = 24
"""Of a step's micro-batches, which are cut before it: tokens, labels and mask, 8 bytes each."""


def check_fits(config: RunConfig, world_size: int, rank: int, ranks_here: int, memory: int) -> None:
    """Raise UserError if the ranks of a machine cannot fit into its memory.

    Args:
        rank: one of them, which stands for all. ranks_here: how many share the memory. memory: bytes.
    """
    world = World(config.parallel, world_size)
    try:
        coordinates = world.all_coordinates[rank]
        exact = sum(states(config, world, coordinates))
        planned = rank_memory(config, world, coordinates).total
    except UserError:
        return  # what the planner does not know, such as a program's own variant, it does not judge
    held = num_microbatches(config, world_size) * config.train.micro_batch_size * config.model.tokens_per_sample
    for bytes_, share, what in (
        (exact, memory, "weights, gradients and optimizer state"),
        (planned + held * _TOKEN_BYTES, memory * SURE, "a step of training"),
    ):
        if bytes_ * ranks_here > share:
            raise UserError(
                f"model: {ranks_here} rank(s) need about {bytes_ * ranks_here / GIB:,.0f} GiB for {what}, and this "
                f"machine has {memory / GIB:,.0f} GiB; fewer layers or features, smaller micro-batches or sequences "
                "or more machines would fit (altup-moe train CONFIG --dry-run plans them)"
            )
