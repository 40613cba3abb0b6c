"""The search finds what planning every layout finds, and simulates few of them."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altup_moe.config import AltUpConfig, ConfigError, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.units import GIB
from altup_moe.plan.cache import Cache
from altup_moe.plan.cluster import Cluster, load_cluster
from altup_moe.plan.costs import FRAGMENTATION, stage_memory, step_costs
from altup_moe.plan.cpu_cost_model import CALLS, OPERATIONS, PIECES, CpuCostModel
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.parameters import ALIGNMENT, TABLES, held_parameters, held_sums, stage_coordinates
from altup_moe.plan.report import found_dict, found_rows
from altup_moe.plan.schedule import least_makespan, makespan
from altup_moe.plan.search import Progress, candidates, pareto_layouts, search, sweep
from altup_moe.plan.step import check_layout, plan_step
from altup_moe.plan.whole_run import whole_run
from tests.plan_search_times import CASES, GOLDEN, NoCache, exhaustive, timed
from tests.unit.plan.configs import runs

H100 = load_cluster("h100x8")
CORES = replace(
    H100,
    gpus_per_node=2,
    cpu_cost_model=CpuCostModel(
        [20.0] * 27,
        [15.0] * 27,
        dict.fromkeys(PIECES, (1.0, 2.0)),
        dict.fromkeys(CALLS, (50.0, 90.0)),
        dict.fromkeys(OPERATIONS, (90.0, 300.0, 2000.0)),
        dict.fromkeys(OPERATIONS, (200.0, 3000.0, 20000.0)),
    ),
)
"""Ranks of a CPU, that send with the core that computes."""


def run(**sections: dict[str, Any]) -> RunConfig:
    config = RunConfig(
        ModelConfig(4, 1024, 4096, 16, 8, 1024, 32768),
        AltUpConfig(width=2),
        MoEConfig(8, ffn_hidden_size=2048),
        train=TrainConfig(precision="bf16", micro_batch_size=1, global_batch_size=24),
    )
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in sections.items()})


DENSE = {"altup": {"width": 1}, "moe": {"num_experts": 0}}
UNTIED = {"model": {"share_embeddings_and_output_weights": False}}
EXHAUSTIVE = {
    "dense": (run(**DENSE), 8, H100),
    # The second of two stages lies on two nodes, and so do its expert groups of three and six.
    "stages across nodes": (run(moe={"num_experts": 6}), 12, H100),
    "nodes of two": (run(**UNTIED, parallel={"overlap_grad_reduce": True}), 8, replace(H100, gpus_per_node=2)),
    "every second layer": (run(moe={"layer_freq": 2}, overlap={"microbatch_halves": True}), 4, H100),
    "cores": (run(**DENSE), 4, CORES),
    "little memory": (run(), 8, replace(H100, memory_gib=4)),
    "a slow network": (run(), 8, replace(H100, gpus_per_node=4, network_gb_per_s=1, network_latency_us=2000)),
}


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_the_search_finds_what_planning_all_layouts_finds(name: str) -> None:
    config, gpus, cluster = EXHAUSTIVE[name]
    wanted = exhaustive(config, cluster, gpus, keep=12)
    assert wanted
    seen: list[Progress] = []
    found = search(config, cluster, gpus, keep=12, report=seen.append)
    assert [(f.plan.seconds, f.config) for f in found] == wanted
    assert search(config, cluster, gpus, keep=1)[0].config == wanted[0][1]
    # A plan of its own, that shares nothing with other layouts, is the same.
    assert plan_step(found[0].config, cluster, gpus) == found[0].plan
    layouts = list(candidates(config, cluster, gpus))
    assert seen[-1] == Progress(gpus, len(layouts), len(layouts), seen[-1].simulated, *reversed(wanted[0]))
    assert all(layouts.count(layout) == 1 for layout in layouts), "a layout is planned twice"


def test_what_layouts_share_is_what_each_has_alone() -> None:
    config, gpus, cluster = EXHAUSTIVE["stages across nodes"]
    cache, compared = Cache(), 0
    for candidate in candidates(config, cluster, gpus):
        with suppress(ConfigError):
            check_layout(candidate, gpus)
            world = World(candidate.parallel, gpus)
            shared, alone = (step_costs(candidate, cluster, world, Factors(), c) for c in (cache, NoCache()))
            assert shared == alone
            assert stage_memory(candidate, world, cache) == stage_memory(candidate, world, NoCache())
            compared += 1
    assert compared > 100


def test_equal_seconds_leave_the_order_of_the_layouts() -> None:
    """Where all work is free of charge, every layout takes what its latencies take, and many take the same."""
    free = Cluster("free", 8, 1e9, 1e9, 1, 1e9, 1e12, 1e12, 1e-30, 1e12, 1e-30)
    config = run(**DENSE, train={"global_batch_size": 8})
    wanted = exhaustive(config, free, 4, keep=40)
    assert len({seconds for seconds, _ in wanted}) < 40
    assert [f.config for f in search(config, free, 4, keep=40)] == [config for _, config in wanted]


@pytest.mark.parametrize(("name", "cluster", "gpus"), [case for case in CASES if case[2] < 1024])
def test_published_sizes(name: str, cluster: str, gpus: int) -> None:
    _published(name, cluster, gpus)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cluster", "gpus"), [case for case in CASES if case[2] >= 1024])
def test_published_sizes_on_many_gpus(name: str, cluster: str, gpus: int) -> None:
    _published(name, cluster, gpus)


def _published(name: str, cluster: str, gpus: int) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))[f"{name}, {gpus} GPUs of {cluster}"]
    rows, last, _ = timed(name, cluster, gpus)
    assert [row["layout"] for row in rows] == [row["layout"] for row in golden]
    assert [row["seconds"] for row in rows] == pytest.approx([row["seconds"] for row in golden], rel=1e-12)
    assert last.looked == last.layouts > 100
    assert last.simulated <= 0.1 * last.layouts


@given(runs(), st.sampled_from([H100, replace(H100, gpus_per_node=2), CORES]))
@settings(max_examples=60)
def test_no_step_is_faster_than_its_bound(case: tuple[RunConfig, int], cluster: Cluster) -> None:
    config, size = case
    costs = step_costs(config, cluster, World(config.parallel, size), Factors(), Cache())
    assert 0 < costs.least_seconds <= costs.seconds
    assert costs.seconds == plan_step(config, cluster, size).seconds


seconds = st.floats(0, 10)
shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)).map(
    lambda s: (s[0], 1, s[2]) if s[0] == 1 or s[1] == 1 else (s[0], s[1], s[0] * s[2])
)


@given(shapes, st.lists(seconds, min_size=40, max_size=40), seconds)
def test_no_schedule_is_faster_than_its_bound(shape: tuple[int, int, int], times: list[float], send: float) -> None:
    (stages, chunks, count), each = shape, iter(times)
    durations = [[(next(each), next(each)) for _ in range(chunks)] for _ in range(stages)]
    assert least_makespan(durations, count, send) <= makespan(durations, count, send)


@given(shapes, st.integers(1, 3), st.integers(1, 5))
def test_the_bound_of_equal_stages_is_their_time(shape: tuple[int, int, int], forward: int, backward: int) -> None:
    stages, chunks, count = shape
    durations = [[(forward, backward)] * chunks] * stages
    assert least_makespan(durations, count) == pytest.approx(makespan(durations, count), rel=1e-9)


@given(runs())
def test_sums_are_those_of_the_parameters(case: tuple[RunConfig, int]) -> None:
    config, size = case
    cache = Cache()
    for coordinates in stage_coordinates(config, size):
        wanted: Counter[tuple[object, ...]] = Counter()
        for h in held_parameters(config, coordinates):
            key = h.chunk, h.expert, h.whole, h.coefficient, h.name in TABLES
            wanted[*key, "size"] += h.size
            wanted[*key, "aligned"] += -(-h.size // ALIGNMENT) * ALIGNMENT
        found: Counter[tuple[object, ...]] = Counter()
        for s in held_sums(config, coordinates, cache):
            key = s.chunk, s.expert, s.whole, s.coefficient, s.table
            found[*key, "size"] += s.size
            found[*key, "aligned"] += s.aligned
        assert found == wanted


def test_what_no_memory_holds() -> None:
    seen: list[Progress] = []
    assert search(run(), replace(H100, memory_gib=0.5), 8, report=seen.append) == []
    assert (seen[-1].looked, seen[-1].simulated, seen[-1].best) == (seen[-1].layouts, 0, None)
    assert list(found_rows([])) == ["no layout fits"]


def test_what_is_not_modelled_is_named() -> None:
    with pytest.raises(ConfigError, match=r"moe\.backend='tutel'"):
        search(run(moe={"backend": "tutel"}), H100, 8)


def test_the_curve_and_its_front() -> None:
    curve = list(sweep(run(), H100, [2, 4]))
    assert [f.plan.gpus for f in curve] == [2, 4]
    assert pareto_layouts(curve) == curve
    assert pareto_layouts([curve[1], curve[0], curve[0]]) == curve


def test_the_whole_run_by_hand() -> None:
    config = run(train={"steps": 7200})
    plan = replace(plan_step(config, H100, 8), seconds=0.5)
    found = whole_run(config, plan)
    assert (found.steps, found.tokens, found.hours, found.gpu_hours) == (7200, 7200 * 24 * 1024, 1.0, 8.0)
    stopped = replace(config, train=replace(config.train, stop_after=3600))
    assert whole_run(stopped, plan).gpu_hours == 4.0


def test_a_layout_in_the_memory_that_fragmentation_takes_is_marked() -> None:
    """The limit lies between what the fastest layout fills, and that with what an allocator would lose."""
    one = search(run(**DENSE), H100, 8, keep=1)[0]
    filled = one.plan.peak_memory / GIB / H100.usable_memory
    marked, roomy, lacking = (
        plan_step(one.config, replace(H100, memory_gib=filled * share), 8)
        for share in (1.001, 1.001 / (1 - FRAGMENTATION), 0.999)
    )
    assert [(p.fits, p.fits_fragmented) for p in (marked, roomy, lacking)] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    tables = [list(found_rows([replace(one, plan=plan)])) for plan in (marked, roomy)]
    assert [sum("!" in row for row in rows) for rows in tables] == [2, 0]
    assert "15%" in tables[0][-1]
    assert found_dict(replace(one, plan=marked))["fits_fragmented"] is False
