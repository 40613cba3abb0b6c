"""The routing that is planned is the one that happens, in every contender, and all of ours compute the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from altup_moe.bench.bench_experts import GOALS, ExpertsRow, experts_table
from altup_moe.bench.expert_rivals import DENSE_MLP, OUR_LAYER, layer_contenders, planned_input, router_weight
from altup_moe.bench.options import ExpertsBench
from altup_moe.config import ParallelConfig
from altup_moe.parallel.topology import Topology, topology

SMALL = ExpertsBench(hidden_size=32, ffn_hidden_size=16, moe_experts=4, tokens=96)


@pytest.fixture(scope="module")
def alone() -> Iterator[Topology]:
    with topology(ParallelConfig()) as topo:
        yield topo


@pytest.mark.parametrize("experts", [4, 8])
def test_planned_routes(experts: int) -> None:
    bench = ExpertsBench(hidden_size=32, moe_experts=experts, tokens=24 * experts * (experts - 1))
    for routing, share in (("balanced", 1 / experts), ("skewed", 1 / 2)):
        logits_TE = planned_input(bench, routing)[:, 0] @ router_weight(bench).t()
        counts = logits_TE.topk(2).indices.flatten().bincount(minlength=experts)
        assert counts[0] == share * 2 * bench.tokens
        # The rest is even.
        assert (counts[1:] == (2 * bench.tokens - counts[0]) // (experts - 1)).all()


@pytest.mark.parametrize("routing", GOALS)
def test_ours_compute_the_same(routing: str, alone: Topology) -> None:
    x = planned_input(SMALL, routing)
    outputs = {c.name: c.forward(x).detach() for c in layer_contenders(SMALL, alone)}
    assert {y.shape for y in outputs.values()} == {x.shape}
    ours = {name: y for name, y in outputs.items() if "backend" in name and "capacity" not in name}
    assert len(ours) >= 3
    for y in ours.values():
        torch.testing.assert_close(y, outputs[OUR_LAYER])
    assert outputs[OUR_LAYER].any()


def test_the_table_says_which_goal_is_met() -> None:
    rows = [
        ExpertsRow(name, routing, ratio * 10, ratio * 9, ratio)
        for name, ratio in ((DENSE_MLP, 1.0), (OUR_LAYER, 1.15))
        for routing in GOALS
    ]
    lines = experts_table(SMALL, 1, 0.5, rows)
    assert any(line.startswith("not met 1.150") and "balanced" in line for line in lines)
    assert any(line.startswith("met     1.150") and "skewed" in line for line in lines)
    # The goals are those of one rank.
    assert not any(line.startswith(("met", "not met")) for line in experts_table(SMALL, 2, 0.5, rows))
