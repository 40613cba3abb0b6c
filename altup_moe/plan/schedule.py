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


Durations = Sequence[Sequence[tuple[float, float]]]
"""Seconds of (forward, backward) for one micro-batch, by stage and chunk."""


def order(stages: int, stage: int, chunks: int, micro_batches: int) -> list[PipelineTask]:
    """The tasks of a stage in order.

    One chunk: 1F1B (Narayanan et al., arXiv 1806.03377). Several chunks: interleaved (arXiv 2104.04473), which needs a
    multiple of `stages` micro-batches and runs them in groups of `stages`, one chunk after another.
    """
    return [PipelineTask(*task) for task in _order(stages, stage, chunks, micro_batches)]


def _order(stages: int, stage: int, chunks: int, micro_batches: int) -> list[tuple[bool, int, int]]:
    """(backward, chunk, micro-batch) of the tasks of a stage in order."""
    total = chunks * micro_batches
    if chunks == 1:
        warm_up = min(total, stages - stage - 1)
        forwards = [(False, 0, index) for index in range(total)]
        backwards = [(True, 0, index) for index in range(total)]
    else:
        warm_up = min(total, 2 * (stages - stage - 1) + (chunks - 1) * stages)
        places = [divmod(index, stages * chunks) for index in range(total)]
        each = [(*divmod(inside, stages), group * stages) for group, inside in places]
        forwards = [(False, chunk, group + place) for chunk, place, group in each]
        backwards = [(True, chunks - 1 - chunk, group + place) for chunk, place, group in each]
    paired = [task for pair in zip(forwards[warm_up:], backwards, strict=False) for task in pair]
    return [*forwards[:warm_up], *paired, *backwards[total - warm_up :]]


def simulate(
    stages: int, chunks: int, micro_batches: int, seconds: Callable[[int, PipelineTask], float], send: float = 0.0
) -> list[Slot]:
    """Simulate the schedule. Returns the slots of all tasks, by stage and in the order in which the stage runs them.

    Args:
        seconds: (stage, task) -> duration, which does not depend on the micro-batch.
        send: seconds from the end of a task until its result arrives at another stage.
    """

    def pair(stage: int, chunk: int) -> tuple[float, float]:
        return seconds(stage, PipelineTask(False, chunk, 0)), seconds(stage, PipelineTask(True, chunk, 0))

    durations = [[pair(stage, chunk) for chunk in range(chunks)] for stage in range(stages)]
    return [
        Slot(stage, task, begin, begin + durations[stage][task.chunk][task.backward])
        for stage, begins in enumerate(_begins(durations, micro_batches, send))
        for task, begin in zip(order(stages, stage, chunks, micro_batches), begins, strict=True)
    ]


def makespan(durations: Durations, micro_batches: int, send: float = 0.0) -> float:
    """Seconds until the last task of `simulate` ends."""
    # The last task of a stage is a backward pass of its first chunk.
    begins = _begins(durations, micro_batches, send)
    return max(mine[-1] + each[0][1] for mine, each in zip(begins, durations, strict=True))


def least_makespan(durations: Durations, micro_batches: int, send: float = 0.0) -> float:
    """Seconds that `makespan` does not fall below, without simulating.

    A stage begins when the first micro-batch has come through the first chunk of the stages before it. It computes all
    of its own tasks one after another. The last one is the backward pass of its first chunk, whose result still goes
    back through the first chunks of the stages before. Equal stages without sends take exactly this long.
    """
    way, least = 0.0, 0.0
    for stage in durations:
        least = max(least, way + micro_batches * sum(forward + backward for forward, backward in stage))
        way += sum(stage[0]) + 2 * send
    # The same sums in another order differ in their last digits.
    return least * (1 - 1e-12)


def _begins(durations: Durations, micro_batches: int, send: float) -> list[list[float]]:
    """When each task begins: by stage, in the order of its tasks."""
    stages, chunks = len(durations), len(durations[0])
    orders = [_order(stages, stage, chunks, micro_batches) for stage in range(stages)]
    count, last = stages * chunks, stages * chunks - 1
    send = send if stages > 1 else 0.0
    # When each forward and backward pass of the model's chunks ends, by chunk and micro-batch; -1 if not known yet.
    forwards, backwards = ([[-1.0] * micro_batches for _ in range(count)] for _ in range(2))
    begins: list[list[float]] = [[] for _ in range(stages)]
    free = [0.0] * stages
    moved = True
    while moved:
        moved = False
        for stage, (mine, tasks) in enumerate(zip(begins, orders, strict=True)):
            now = free[stage]
            for index in range(len(mine), len(tasks)):
                backward, chunk, number = tasks[index]
                place = chunk * stages + stage
                if not backward:
                    ready = forwards[place - 1][number] if place else 0.0
                    wait = send if place else 0.0
                elif place == last:
                    # The last chunk computes the loss itself, so its backward waits for no other stage.
                    ready, wait = forwards[place][number], 0.0
                else:
                    ready, wait = backwards[place + 1][number], send
                if ready < 0:
                    break
                now = max(now, ready + wait)
                mine.append(now)
                now += durations[stage][chunk][backward]
                (backwards if backward else forwards)[place][number] = now
                moved = True
            free[stage] = now
    if any(len(mine) < len(tasks) for mine, tasks in zip(begins, orders, strict=True)):
        raise AssertionError("the schedule is deadlocked")
    return begins


def busy(slots: Sequence[Slot], stages: int) -> Iterator[float]:
    """Seconds of computation of each stage."""
    for stage in range(stages):
        yield sum(s.end - s.begin for s in slots if s.stage == stage)
