"""The plan's bytes on every link are those that the ranks of a real step hand to their collectives, exactly."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import pytest
from packaging.version import Version

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.parallel.rank_coordinates import RankCoordinates
from altup_moe.plan.groups import World
from altup_moe.plan.traffic import step_transfers
from altup_moe.plan.transfers import Transfer
from altup_moe.plan.update_traffic import norm_groups
from tests.distributed.cases import small, world_size
from tests.distributed.ranks import run_ranks
from tests.distributed.traffic import Counted, step_traffic

pytestmark = pytest.mark.distributed

Totals = dict[tuple[str, tuple[int, ...]], tuple[int, float]]


def planned(config: RunConfig, size: int, counted: list[Counted]) -> list[Totals]:
    """What the plan says of every rank, from the routes that were counted."""
    world, halves = World(config.parallel, size), 2 if config.overlap.microbatch_halves else 1

    def routes(layer: int, rank: int, micro_batch: int) -> list[int]:
        parts = counted[rank].routes[layer][micro_batch * halves : (micro_batch + 1) * halves]
        return [sum(part) for part in zip(*parts, strict=True)]

    totals: list[Totals] = []
    for coordinates in world.all_coordinates:
        mine: Totals = {}
        for t in [*step_transfers(config, world, coordinates, routes), *_further(config, world, coordinates)]:
            calls, total = mine.get((t.operation, t.ranks), (0, 0.0))
            mine[t.operation, t.ranks] = (calls + t.calls, total + t.size)
        totals.append(mine)
    return totals


def _further(config: RunConfig, world: World, coordinates: RankCoordinates) -> list[Transfer]:
    """megatron-core 0.19 reduces one more number for each optimizer, 4 bytes that the plan leaves out."""
    if Version(version("megatron-core")) < Version("0.19"):
        return []
    groups = [ranks for ranks in norm_groups(config, world, coordinates) if len(ranks) > 1]
    return [Transfer("report", "all_reduce", ranks, 1, 4, "step") for ranks in groups]


def check(config: RunConfig, size: int) -> None:
    check_config(config, size)
    counted = run_ranks(size, step_traffic, config)
    for rank, (expected, got) in enumerate(zip(counted, planned(config, size, counted), strict=True)):
        assert got == expected.transfers, f"rank {rank}"


CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "data": ("dp2", {}),
    "data, sharded, bf16": ("dp2", {"parallel": {"distributed_optimizer": True}, "train": {"precision": "bf16"}}),
    "tensor and expert-tensor": ("tp2", {}),
    "tensor, dense, recomputed": (
        "tp2",
        {"moe": {"num_experts": 0}, "parallel": {"expert_tensor": 1}, "train": {"recompute": "full"}},
    ),
    "uneven stages, K 4": ("pp2-uneven", {"altup": {"width": 4}}),
    "interleaved, tied": ("pp2-vpp2", {"model": {"share_embeddings_and_output_weights": True}}),
    "interleaved, tied, sharded": (
        "pp2-vpp2",
        {
            "model": {"share_embeddings_and_output_weights": True},
            "parallel": {"distributed_optimizer": True, "data": 2},
        },
    ),
    "experts over two, recomputed": ("ep2", {"train": {"recompute": "full"}}),
    "experts over four": ("ep4", {"moe": {"layer_freq": 1}, "parallel": {"distributed_optimizer": True}}),
    "experts over two, all-gather, bf16": ("ep2", {"moe": {"dispatcher": "allgather"}, "train": {"precision": "bf16"}}),
    "halves": ("ep2", {"overlap": {"microbatch_halves": True}}),
    "whole experts on tensor ranks": ("tp2-ep1", {}),
    "tensor, experts, capacity": ("tp2-ep2", {"moe": {"capacity_factor": 1.0}}),
    "shared expert, bias": (
        "tp2-ep2",
        {"moe": {"shared_expert_size": 16, "score_function": "sigmoid", "expert_bias_update_rate": 0.01}},
    ),
    "context, recomputed scores": ("cp2", {"train": {"recompute": "selective"}}),
    "tensor, stages, experts, wide tables": ("tp2-pp2-ep2", {"altup": {"recycled": False}}),
    "data, stages": ("dp2-pp2", {"model": {"qk_layernorm": True}}),
    "experts and expert-tensor": ("dp4-ep2-etp2", {}),
    "mhc, tensor": ("tp2", {"altup": {"level": "branch", "variant": "mhc"}}),
    "mhc_single_pass, interleaved": (
        "pp2-vpp2",
        {"altup": {"level": "branch", "variant": "mhc_single_pass", "width": 4}},
    ),
    "mhc_single_pass, uneven stages, wide tables": (
        "pp2-uneven",
        {"altup": {"level": "branch", "variant": "mhc_single_pass", "recycled": False}},
    ),
    "independent_hc, tensor, stages, experts": (
        "tp2-pp2-ep2",
        {"altup": {"level": "branch", "variant": "independent_hc"}},
    ),
    "gated_residual, experts, recomputed": (
        "ep2",
        {"altup": {"level": "branch", "variant": "gated_residual"}, "train": {"recompute": "full"}},
    ),
    "delayed, experts, capacity, recomputed": (
        "tp2-ep2",
        {"altup": {"correct": "delayed"}, "moe": {"capacity_factor": 1.0}, "train": {"recompute": "full"}},
    ),
    "delayed sums, stages": ("pp2-vpp2", {"altup": {"correct": "delayed", "variant": "hc", "width": 4}}),
    "plain, delayed branches, stages": ("pp2-vpp2", {"altup": {"level": "branch", "correct": "delayed", "width": 1}}),
    "mhc_single_pass, delayed, stages, experts": (
        "tp2-pp2-ep2",
        {"altup": {"level": "branch", "correct": "delayed", "variant": "mhc_single_pass"}},
    ),
    "dynamic, tensor": ("tp2", {"altup": {"variant": "dynamic", "width": 4}}),
    "dynamic, branches, stages, sharded": (
        "dp2-pp2",
        {"altup": {"level": "branch", "variant": "dynamic"}, "parallel": {"distributed_optimizer": True}},
    ),
}
"""Name -> (layout, what differs from the small model). Together: every layout of `cases.LAYOUTS` with a collective."""


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_a_real_step(case: str) -> None:
    layout, sections = CASES[case]
    config = small(layout, **sections)
    size = world_size(layout) * (2 if sections.get("parallel", {}).get("data") else 1)
    check(config, size)
