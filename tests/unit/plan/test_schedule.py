"""The simulated schedules: their orders are Megatron's, their makespans the closed forms, their depths the memory's."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.config import ParallelConfig, RunConfig
from altup_moe.plan.memory import micro_batches_in_flight
from altup_moe.plan.schedule import PipelineTask, order, simulate

shapes = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5)).map(
    # (stages, chunks, micro-batches): interleaving wants more than one stage and whole groups.
    lambda s: (s[0], 1, s[2]) if s[0] == 1 or s[1] == 1 else (s[0], s[1], s[0] * s[2])
)


def test_one_forward_one_backward_by_hand() -> None:
    """Two stages, three micro-batches: the first stage runs one ahead."""
    f, b = (lambda n: PipelineTask(False, 0, n)), (lambda n: PipelineTask(True, 0, n))
    assert order(2, 0, 1, 3) == [f(0), f(1), b(0), f(2), b(1), b(2)]
    assert order(2, 1, 1, 3) == [f(0), b(0), f(1), b(1), f(2), b(2)]


@given(shapes, st.integers(1, 3), st.integers(1, 5))
def test_equal_stages_take_the_closed_form(shape: tuple[int, int, int], forward: int, backward: int) -> None:
    """m (f + b) of work in v chunks each, and a bubble of (p - 1)(f + b) / v (arXiv 2104.04473, section 2.2)."""
    stages, chunks, count = shape
    slots = simulate(stages, chunks, count, lambda _, task: backward if task.backward else forward)
    assert len(slots) == len({(s.stage, s.task) for s in slots}) == 2 * stages * chunks * count
    assert max(s.end for s in slots) == (count * chunks + stages - 1) * (forward + backward)


@given(shapes)
def test_depth_is_that_of_the_memory(shape: tuple[int, int, int]) -> None:
    stages, chunks, count = shape
    config = RunConfig(parallel=ParallelConfig(pipeline=stages, virtual_pipeline=chunks))
    config = replace(config, train=replace(config.train, micro_batch_size=1, global_batch_size=count))
    for stage in range(stages):
        flying = deepest = 0
        for task in order(stages, stage, chunks, count):
            flying += -1 if task.backward else 1
            deepest = max(deepest, flying)
        assert micro_batches_in_flight(config, stages, stage) == deepest


def test_a_slow_stage_and_a_slow_link_lengthen_the_step() -> None:
    even = max(s.end for s in simulate(4, 1, 8, lambda *_: 1.0))
    slow = max(s.end for s in simulate(4, 1, 8, lambda stage, _: 1.5 if stage == 2 else 1.0))
    # The slow stage's own work, after two forwards and before two backwards of the stages before it.
    assert slow >= 8 * (1.5 + 1.5) + 4 > even
    assert max(s.end for s in simulate(4, 1, 8, lambda *_: 1.0, send=0.25)) > even


def test_no_task_begins_before_its_input_is_there() -> None:
    slots = {(s.stage, s.task): s for s in simulate(3, 2, 6, lambda stage, _: 1.0 + stage, send=0.5)}
    for (stage, task), slot in slots.items():
        if not task.backward and stage > 0:
            assert slot.begin >= slots[stage - 1, task].end + 0.5
        if task.backward and (stage, task.chunk) != (2, 1):
            after = (stage + 1, task) if stage < 2 else (0, replace(task, chunk=task.chunk + 1))
            assert slot.begin >= slots[after].end + 0.5


@pytest.mark.parametrize("stages", [1, 3])
def test_one_micro_batch_goes_there_and_back(stages: int) -> None:
    assert max(s.end for s in simulate(stages, 1, 1, lambda *_: 2.0, send=1.0)) == 4 * stages + 2 * (stages - 1)
