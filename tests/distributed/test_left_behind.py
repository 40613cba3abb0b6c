"""What a case leaves in the rank that ran it: no process group, no thread of one, and nothing of a step's graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch.distributed as dist

from altup_moe.config import RunConfig
from tests.backends import installed
from tests.distributed.cases import LAYOUTS, small, world_size
from tests.distributed.gradients import layout_step
from tests.distributed.ranks import TIMEOUT, Pool, run_fresh_ranks
from tests.distributed.test_plan_memory import hold

pytestmark = pytest.mark.distributed

CASES: dict[str, tuple[str, Callable, dict[str, dict[str, Any]]]] = {
    "tensor, stages, experts": ("tp2-pp2-ep2", layout_step, {}),
    "interleaved stages": ("pp2-vpp2", layout_step, {}),
    "sequences in parts": ("cp2", layout_step, {}),
    "shards": ("dp2", layout_step, {"parallel": {"distributed_optimizer": True}}),
    # A part of these models gets no gradient: its autograd nodes are not freed by the backward pass.
    "a delayed exchange": ("ep2", layout_step, {"altup": {"correct": "delayed"}}),
    "a delayed exchange, saved tensors counted": ("ep2", hold, {"altup": {"correct": "delayed"}}),
    "wide residual": ("one", hold, {"altup": {"level": "branch", "width": 4, "variant": "wide_residual"}}),
}


def counts() -> tuple[int, int]:
    """On a rank: (threads, process groups)."""
    return len(os.listdir("/proc/self/task")), len(dist.distributed_c10d._world.pg_map)


def _work(function: Callable, config: RunConfig) -> None:
    function(config)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Ranks that have run a step, which starts the threads of autograd; these stay."""
    own = Pool()
    own.run(4, _work, (layout_step, small("tp2-pp2-ep2")), TIMEOUT)
    yield own
    own.end()


def _before_and_after(pool: Pool, layout: str, function: Callable, sections: dict) -> tuple[list, list]:
    before = pool.run(4, counts, (), TIMEOUT)
    pool.run(world_size(layout), _work, (function, small(layout, **sections)), TIMEOUT)
    return before, pool.run(4, counts, (), TIMEOUT)


@pytest.mark.parametrize("case", CASES)
def test_a_case_leaves_no_group_behind(case: str, pool: Pool) -> None:
    before, after = _before_and_after(pool, *CASES[case])
    assert after == before


@pytest.mark.parametrize("backend", [installed("deepspeed")])
def test_deepspeed_does_not_keep_the_world_in_which_it_was_imported(backend: str, pool: Pool) -> None:
    before, after = _before_and_after(pool, "ep2", layout_step, {"moe": {"backend": backend, "layer_freq": 1}})
    assert after == before


def _inside(layout: str) -> tuple[tuple[int, int], tuple[int, int]]:
    from altup_moe.parallel.topology import topology

    before = counts()
    with topology(LAYOUTS[layout]):
        return before, counts()


def test_the_groups_of_a_topology_share_the_thread_that_serves_connections() -> None:
    for (threads, groups), (more_threads, more_groups) in run_fresh_ranks(2, _inside, "tp2"):
        assert more_groups > groups + 10
        # Two of each group run its collectives.
        assert more_threads - threads == 2 * (more_groups - groups) + 1


def alive(config: RunConfig) -> list[str]:
    """On a rank: tensors of a step's graph that are there after it, without Python's search for circles."""
    import gc

    import torch

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import run_schedule
    from tests.distributed.cases import own_batches

    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        batches = own_batches(config, topo)
        gc.collect()
        before = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
        gc.disable()
        try:
            run_schedule(engine.chunks, batches, config, topo)
            tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and t.requires_grad]
        finally:
            gc.enable()
        known = {id(t) for t in before}
        return [f"{tuple(t.shape)} {type(t.grad_fn).__name__}" for t in tensors if id(t) not in known]


FULL: Any = {"recompute": "full"}
STEPS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    # A dispatcher holds probabilities until its next micro-batch, and a chunk what the stage before sent.
    "experts, recomputed": ("one", {"train": FULL}),
    "plain stages": ("pp2", {"altup": {"width": 1}}),
    "interleaved stages": ("pp2-vpp2", {}),
    # Two pieces of work that take turns know each other.
    "halves": ("ep2", {"overlap": {"microbatch_halves": True}}),
    "two steps at a time, recomputed": ("ep2", {"altup": {"correct": "delayed"}, "train": FULL}),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_leaves_nothing_of_its_graph(step: str, pool: Pool) -> None:
    """What is left holds memory for as long: blocks that a recomputed layer started from, and their gradients."""
    layout, sections = STEPS[step]
    found = pool.run(world_size(layout), alive, (small(layout, **sections),), TIMEOUT)
    assert found == [[]] * world_size(layout)


def held_by_a_loss(config: RunConfig) -> tuple[int, int]:
    """On a rank: (bytes that are there after a backward pass whose loss lives on, at most before)."""
    import torch

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from tests.distributed.cases import micro_batch
    from tests.distributed.live_bytes import LiveBytes

    with topology(config.parallel) as topo:
        (chunk,) = build_engine(config, topo).chunks
        tokens, labels = micro_batch(config, topo.data_rank)
        torch.autograd.backward(chunk(tokens, labels).sum())  # makes buffers that stay
        with LiveBytes() as live:
            loss = chunk(tokens, labels)
            torch.autograd.backward(loss.sum())
            return live.now, live.peak


HELD: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "exchanges": ("ep2", {}),
    "tensor ranks": ("tp2", {"moe": {"num_experts": 0}}),
    "recomputed": ("one", {"train": FULL, "moe": {"num_experts": 0}}),
    "recomputed, weights of every token": ("ep2", {"altup": {"level": "branch", "variant": "mhc"}, "train": FULL}),
}


@pytest.mark.parametrize("case", HELD)
def test_a_backward_pass_frees_what_the_forward_pass_kept(case: str, pool: Pool) -> None:
    """Megatron's schedules hold a micro-batch's loss, and with it the nodes of its graph, until the next one's."""
    layout, sections = HELD[case]
    config = small(layout, **{**sections, "parallel": {"expert_tensor": 1}})
    for after, most in pool.run(world_size(layout), held_by_a_loss, (config,), TIMEOUT):
        assert after < 0.03 * most
