"""Progress of a study: the state of each row, and an estimate of the time that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from altup_moe.model.flops import flops_per_token
from altup_moe.study.records import StudyRow
from altup_moe.study.spec import MeasureSpec, RowSpec, Study
from altup_moe.study.study_directory import RowDirectory, StudyDirectory, read_json_or_none
from altup_moe.study.time_left import Work, seconds_left, spelled_time

RowPhase = Literal["done", "failed", "trained", "training", "requeued", "queued", "waiting"]
"""State of a row. `queued`: its job waits in SLURM; `requeued`: it does so again, having run before."""


@dataclass(frozen=True)
class RowState:
    """State of one row: steps taken, last loss (nats a token), and the work of its training and of measuring it."""

    row: RowSpec
    state: RowPhase
    steps: int
    loss: float | None
    training: Work
    measuring: Work | None


@dataclass(frozen=True)
class Snapshot:
    """State of all rows at one moment."""

    states: list[RowState]
    left: float | None
    """Estimated seconds until the end; None if unknown."""

    def count(self, *states: RowPhase) -> int:
        """Number of rows in one of these states."""
        return sum(each.state in states for each in self.states)

    def summary(self) -> str:
        """Counts by state and the time left, in one line."""
        total = len(self.states)
        parts = [f"{self.count('done')} of {total} rows done"]
        under_way: tuple[RowPhase, ...] = ("trained", "training", "requeued", "queued", "waiting")
        parts += [f"{self.count(state)} {state}" for state in under_way if self.count(state)]
        parts.append(f"{self.count('failed')} failed")
        if self.count("done", "failed") < total:
            parts.append(spelled_time(self.left))
        return ", ".join(parts)


def snapshot(
    study: Study,
    directory: StudyDirectory,
    finished: Mapping[str, StudyRow],
    phases: Mapping[str, RowPhase],
    lanes: int,
) -> Snapshot:
    """Read the rows' files. ``phases``: what rows do now, by key; ``lanes``: cores that training fills."""
    states = [_state(study, row, directory.of_row(row), finished.get(row.config_hash), phases) for row in study.rows]
    to_measure = [each.measuring for each in states if each.measuring]
    training = [each.training for each in states]
    return Snapshot(states, seconds_left(training, to_measure, lanes))


def _state(
    study: Study, row: RowSpec, row_directory: RowDirectory, line: StudyRow | None, phases: Mapping[str, RowPhase]
) -> RowState:
    lines = row_directory.metrics()
    trained = read_json_or_none(row_directory.trained)
    state: RowPhase = (
        line.status
        if line
        else "trained" if trained else phases.get(row.key, "waiting")
    )  # fmt: skip
    work = training_work(row, lines, (trained or {}).get("wall_seconds", 0.0))
    if state in ("done", "failed", "trained"):
        work = Work(work.done, work.done, work.core_seconds, work.cores)
    measuring = measuring_work(study.measure, row, lines) if state not in ("done", "failed") else None
    last = lines[-1] if lines else {}
    return RowState(row, state, last.get("step", 0), last.get("lm_loss"), work, measuring)


def lanes_of(study: Study, phases: Mapping[str, RowPhase]) -> int:
    """Cores of the rows that train now; of the widest one where none does."""
    widest = max(row.cores for row in study.rows)
    return max(widest, sum(row.cores for row in study.rows if phases.get(row.key) == "training"))


def training_work(row: RowSpec, lines: Sequence[dict[str, Any]], wall: float) -> Work:
    """Work of a row's training in floating-point operations; in core-seconds if the budget is in seconds.

    Args:
        lines: its record so far. wall: seconds of the process that trained it, which are more than its steps'.
    """
    spent = sum(line["step_seconds"] for line in lines)
    if row.budget.seconds is not None:
        return Work(spent * row.cores, row.budget.seconds * row.cores, spent * row.cores, row.cores)
    step = row.tokens_per_step * flops_per_token(row.config)
    steps = row.config.train.steps - (row.branch.step if row.branch is not None else 0)
    return Work(len(lines) * step, steps * step, max(spent, wall) * row.cores, row.cores)


def measuring_work(measure: MeasureSpec, row: RowSpec, lines: Sequence[dict[str, Any]]) -> Work:
    """Work of measuring a row, in the same unit: its training steps. Prompts and tokens are neglected."""
    steps = measure.train_steps + measure.warmup * measure.rounds
    if row.budget.seconds is not None:
        each = sum(line["step_seconds"] for line in lines) / len(lines) * row.cores if lines else 0.0
    else:
        each = row.tokens_per_step * flops_per_token(row.config)
    return Work(0.0, steps * each, 0.0, row.cores)
