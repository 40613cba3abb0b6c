"""The files that the ranks of a layout would write for a checkpoint, computed without starting any rank. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from altup_moe.checkpoint.manifest import STATE_KINDS
from altup_moe.checkpoint.optimizer_state_shapes import FACTORED_STATES
from altup_moe.checkpoint.slices import full_slice, merge_slices
from altup_moe.checkpoint.write import NamedSlice, TensorSpec, WritePlan, plan_files
from altup_moe.checkpoint.write_balancing import balance_writes
from altup_moe.config import ParallelConfig, RunConfig
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.rank_coordinates import RankCoordinates, all_rank_coordinates, held_tensors


def holding_ranks(config: RunConfig, world_size: int, specs: Mapping[str, TensorSpec]) -> dict[NamedSlice, list[int]]:
    """Stored slice -> all ranks that hold it, replicas included; weights first.

    Optimizer state is cut like its parameter. A distributed optimizer's rank holds only a range of that; here all data
    ranks of a parameter count as holders of its state, and `balance_writes` distributes it among them.

    Args:
        config: a run that `check_config` accepted for `world_size` ranks.
        specs: stored tensors by name (KIND/NAME, of `STATE_KINDS`).
    """
    # Ranks that differ only in their data, context or expert-data coordinate hold the same tensors.
    alike: defaultdict[RankCoordinates, list[int]] = defaultdict(list)
    for coordinates in all_rank_coordinates(config.parallel, world_size):
        kept = RankCoordinates(
            -1, coordinates.tensor, -1, -1, coordinates.pipeline, coordinates.expert, coordinates.expert_tensor, -1
        )
        alike[kept].append(coordinates.rank)
    slices: defaultdict[tuple[str, TensorSlice], set[int]] = defaultdict(set)
    for coordinates, ranks in alike.items():
        for name, tensor_slice in _rank_slices(config, coordinates):
            slices[name, tensor_slice].update(ranks)
    return {
        # Factored state is stored whole: no layout that uses it cuts its parameters.
        NamedSlice(stored, full_slice(specs[stored].shape) if kind in FACTORED_STATES else tensor_slice): sorted(ranks)
        for kind in STATE_KINDS
        for (name, tensor_slice), ranks in slices.items()
        if (stored := f"{kind}/{name}") in specs
    }


def _rank_slices(config: RunConfig, coordinates: RankCoordinates) -> Iterator[tuple[str, TensorSlice]]:
    """(global name, slice) of everything that a rank holds; adjacent slices, such as query groups, are merged."""
    held: dict[str, set[TensorSlice]] = {}
    for tensor in held_tensors(config, coordinates):
        for piece in tensor.pieces:
            held.setdefault(piece.name, set()).add(piece.global_slice)
    for name, slices in held.items():
        for tensor_slice in merge_slices(slices):
            yield name, tensor_slice


def layout_plan(config: RunConfig, world_size: int, specs: Mapping[str, TensorSpec]) -> WritePlan:
    """The files of every rank: each element is in one file, written by a rank that holds it."""
    mine: defaultdict[int, list[NamedSlice]] = defaultdict(list)
    for part, rank in balance_writes(holding_ranks(config, world_size, specs), specs).items():
        mine[rank].append(part)
    plan: WritePlan = {}
    for rank in sorted(mine):
        plan |= plan_files(rank, mine[rank], specs)
    return plan


def describe_layout(parallel: ParallelConfig, world_size: int) -> str:
    """A layout in words: every size above 1, and the number of ranks."""
    named = {
        "tensor": parallel.tensor,
        "pipeline": parallel.pipeline,
        "virtual pipeline": parallel.virtual_pipeline,
        "expert": parallel.expert,
        "expert tensor": parallel.expert_tensor,
        "context": parallel.context,
        "data": world_size // (parallel.tensor * parallel.pipeline * parallel.context),
    }
    words = [f"{name} {size}" for name, size in named.items() if size > 1]
    ends = (("first", parallel.first_stage_layers), ("last", parallel.last_stage_layers))
    words += [f"{count} layers on the {end} stage" for end, count in ends if count is not None]
    words += ["distributed optimizer"] if parallel.distributed_optimizer else []
    return f"{', '.join(words)}{' on ' if words else ''}{world_size} rank{'s' if world_size > 1 else ''}"
