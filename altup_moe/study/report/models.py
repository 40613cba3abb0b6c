"""Group the rows of a study by configuration: a `Model` has the rows of one name, one for every seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from altup_moe.study.records import Quality, StudyRow

LatencyKind = Literal["train_step", "prefill", "decode"]
LATENCIES: dict[LatencyKind, str] = {"train_step": "train step", "prefill": "prefill", "decode": "decode"}
UNITS: dict[LatencyKind, str] = {"train_step": "ms a step", "prefill": "ms a token", "decode": "ms a token"}

Axis = Literal["train_step", "prefill", "decode", "parameters", "active_parameters"]
AXES: dict[Axis, str] = {
    "train_step": "train step (ms)",
    "prefill": "prefill (ms a token)",
    "decode": "decode (ms a token)",
    "parameters": "parameters",
    "active_parameters": "active parameters",
}
"""Axes that a loss is drawn against, with their labels."""

LossUnit = Literal["loss", "bits"]
LOSS_UNITS: dict[LossUnit, str] = {"loss": "held-out loss (nats a token)", "bits": "held-out bits per byte"}
"""Units of the held-out loss, with their labels; less is better."""


@dataclass(frozen=True)
class Interval:
    """A 95 % interval. An infinite end of a speed at equal quality lies off the reference's curve."""

    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value lies inside, the ends included."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Stat:
    """Statistics of a figure over seeds. `std`: sample standard deviation, None for one seed."""

    mean: float
    std: float | None
    least: float
    most: float
    count: int


def stat(values: Sequence[float]) -> Stat | None:
    """Statistics of measured values; None if there are none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Stat(statistics.fmean(values), std, min(values), max(values), len(values))


def mean_of(found: Stat | None) -> float | None:
    """The mean, or None if nothing was measured."""
    return None if found is None else found.mean


def latency(row: StudyRow, kind: LatencyKind) -> float | None:
    """Median latency in ms; None if it was not measured or is not above zero."""
    spread = getattr(row.latency, kind, None)
    return spread.median if spread is not None and spread.median > 0 else None


@dataclass(frozen=True)
class Model:
    """One configuration: its finished rows, by seed. All have a quality."""

    name: str
    family: str
    rows: tuple[StudyRow, ...]

    def stat(self, value: Callable[[StudyRow], float | None]) -> Stat | None:
        """Statistics of a figure over the seeds that have it."""
        return stat([v for row in self.rows if (v := value(row)) is not None])

    def along(self, axis: Axis) -> Stat | None:
        """Statistics of a latency in ms, or of a number of parameters."""
        if axis in LATENCIES:
            return self.stat(lambda row: latency(row, axis))
        return self.stat(lambda row: getattr(row, axis))

    def quality(self, unit: LossUnit) -> Stat:
        """Statistics of the held-out loss."""
        found = stat([quality(row, unit) for row in self.rows])
        assert found is not None
        return found


def quality(row: StudyRow, unit: LossUnit) -> float:
    """Held-out loss of a finished row, in nats a token or bits per byte."""
    assert isinstance(row.quality, Quality)
    return row.quality.valid_loss if unit == "loss" else row.quality.valid_bits_per_byte


def last_lines(rows: Iterable[StudyRow]) -> list[StudyRow]:
    """Keep the last line of every (name, seed): a row that was tried again counts once."""
    return list({(row.name, row.seed): row for row in rows}.values())


def split(rows: Iterable[StudyRow]) -> tuple[list[Model], list[StudyRow]]:
    """Split rows into models, in order of appearance, and failed rows; a row without a finite loss counts as failed."""
    done: dict[str, list[StudyRow]] = {}
    failed = []
    for row in rows:
        if row.status != "done":
            failed.append(row)
        elif row.quality is None or not math.isfinite(row.quality.valid_loss):
            failed.append(replace(row, status="failed", reason=row.reason or "it has no finite held-out loss"))
        else:
            done.setdefault(row.name, []).append(row)
    models = [
        Model(name, found[0].family, tuple(sorted(found, key=lambda row: row.seed))) for name, found in done.items()
    ]
    return models, failed


def families(models: Iterable[Model]) -> dict[str, list[Model]]:
    """Group models by family, in order of appearance."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(model.family, []).append(model)
    return found
