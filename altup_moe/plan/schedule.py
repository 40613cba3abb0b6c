"""A simulation of Megatron's pipeline schedules: when each stage computes which chunk of which micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineTask:
    """The forward or backward pass of one chunk (counted from 0) of a stage for one micro-batch."""

    backward: bool
    chunk: int
    micro_batch: int


@dataclass(frozen=True)
class Slot:
    """A task with its begin and end, seconds from the start of the step."""

    stage: int
    task: PipelineTask
    begin: float
    end: float


def order(stages: int, stage: int, chunks: int, micro_batches: int) -> list[PipelineTask]:
    """The tasks of a stage in order.

    One chunk: 1F1B (Narayanan et al., arXiv 1806.03377). Several chunks: interleaved (arXiv 2104.04473), which needs a
    multiple of `stages` micro-batches and runs them in groups of `stages`, one chunk after another.
    """
    total = chunks * micro_batches
    if chunks == 1:
        warm_up = min(total, stages - stage - 1)
    else:
        warm_up = min(total, 2 * (stages - stage - 1) + (chunks - 1) * stages)

    def task(index: int, backward: bool) -> PipelineTask:
        if chunks == 1:
            return PipelineTask(backward, 0, index)
        group, inside = divmod(index, stages * chunks)
        chunk, place = divmod(inside, stages)
        return PipelineTask(backward, chunks - 1 - chunk if backward else chunk, group * stages + place)

    tasks = [task(index, False) for index in range(warm_up)]
    for index in range(total - warm_up):
        tasks += [task(index + warm_up, False), task(index, True)]
    return [*tasks, *(task(index, True) for index in range(total - warm_up, total))]


def simulate(
    stages: int, chunks: int, micro_batches: int, seconds: Callable[[int, PipelineTask], float], send: float = 0.0
) -> list[Slot]:
    """Simulate the schedule. Returns the slots of all tasks, by stage and in the order in which the stage runs them.

    Args:
        seconds: (stage, task) -> duration.
        send: seconds from the end of a task until its result arrives at another stage.
    """
    orders = [order(stages, stage, chunks, micro_batches) for stage in range(stages)]
    done: dict[tuple[bool, int, int], float] = {}
    at, free = [0] * stages, [0.0] * stages
    slots: list[list[Slot]] = [[] for _ in range(stages)]
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while at[stage] < len(orders[stage]):
                task = orders[stage][at[stage]]
                ready = _ready(task, stage, stages, chunks, done, send)
                if ready is None:
                    break
                begin = max(free[stage], ready)
                free[stage] = begin + seconds(stage, task)
                done[task.backward, task.chunk * stages + stage, task.micro_batch] = free[stage]
                slots[stage].append(Slot(stage, task, begin, free[stage]))
                at[stage] += 1
                moved = True
    if any(n < len(tasks) for n, tasks in zip(at, orders, strict=True)):
        raise AssertionError("the schedule is deadlocked")
    return [slot for stage in slots for slot in stage]


def _ready(
    task: PipelineTask, stage: int, stages: int, chunks: int, done: dict[tuple[bool, int, int], float], send: float
) -> float | None:
    """When a task's input arrives; None if that is not known yet."""
    position, last = task.chunk * stages + stage, chunks * stages - 1
    if not task.backward:
        if position == 0:
            return 0.0
        before = done.get((False, position - 1, task.micro_batch))
    elif position == last:
        # The last chunk computes the loss itself, so its backward waits for no other stage.
        return done.get((False, position, task.micro_batch))
    else:
        before = done.get((True, position + 1, task.micro_batch))
    return None if before is None else before + (send if stages > 1 else 0.0)


def busy(slots: Sequence[Slot], stages: int) -> Iterator[float]:
    """Seconds of computation of each stage."""
    for stage in range(stages):
        yield sum(s.end - s.begin for s in slots if s.stage == stage)
