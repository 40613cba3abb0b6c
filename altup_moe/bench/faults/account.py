"""What faults have cost: pure functions over events of a run and over the lines of its metrics.

An outage lasts from a fault that ends the ranks until training is beyond the last step it had done before. Its seconds
are split by what the run was at: detect (ranks still live), restart (new ranks start and meet), load (the checkpoint),
redo (lost steps are done again). A fault inside an outage belongs to it.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

What = Literal["fault", "gone", "started", "progress"]
PHASES = ("detect", "restart", "load", "redo")
COMPARED = ("loss", "lm_loss", "grad_norm", "learning_rate", "consumed_samples")
"""Metrics that must be bit for bit those of a quiet run."""


@dataclass(frozen=True)
class Event:
    """Something that was seen of a run.

    Attributes:
        second: when, on one clock.
        what: fault: one was injected (`kind`; `fatal`: it ends ranks). gone: no rank lives. started: new ranks have
            restored `step`, which took `load` seconds. progress: `step` is recorded.
    """

    second: float
    what: What
    step: int = 0
    load: float = 0.0
    kind: str = ""
    fatal: bool = False


@dataclass
class Outage:
    """One outage; seconds by kind. Mutable: the sweep adds to it."""

    kinds: list[str]
    began: float
    lost_steps: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    ended: bool = False

    @property
    def total(self) -> float:
        """All of its seconds."""
        return sum(self.seconds.values())


def outages(events: Iterable[Event]) -> list[Outage]:
    """The outages of a run, from its events in order of time."""
    found: list[Outage] = []
    now: Outage | None = None
    phase, since = "", 0.0
    high = current = 0
    recent = "none"
    for event in events:
        if now is not None:
            # A start says afterwards how much of the time was the load.
            load = min(event.load, event.second - since) if event.what == "started" else 0.0
            now.seconds[phase] += event.second - since - load
            now.seconds["load"] += load
        since = event.second
        match event.what:
            case "fault":
                recent = event.kind
                if event.fatal and now is None:
                    now = Outage([event.kind], event.second)
                    found.append(now)
                    phase = "detect"
                elif event.fatal and now is not None:
                    now.kinds.append(event.kind)
                    phase = "detect" if phase == "redo" else phase
            case "gone":
                if now is None:
                    now = Outage([recent], event.second)
                    found.append(now)
                phase = "restart"
            case "started":
                if now is not None:
                    now.lost_steps += max(0, current - event.step)
                    phase = "redo"
                current = event.step
            case "progress":
                current = event.step
                if now is not None and phase == "redo" and event.step > high:
                    now.ended, now = True, None
                high = max(high, event.step)
    return found


@dataclass(frozen=True)
class KindCost:
    """Outages that one kind began: their number, all faults in them, steps lost in all, medians and the most of s."""

    kind: str
    number: int
    faults: int
    lost_steps: int
    seconds: Mapping[str, float]
    median: float
    most: float


def by_kind(found: Sequence[Outage]) -> list[KindCost]:
    """Costs by the kind that began an outage."""
    groups: dict[str, list[Outage]] = {}
    for outage in found:
        groups.setdefault(outage.kinds[0], []).append(outage)
    costs = []
    for kind, of_kind in sorted(groups.items()):
        seconds = {phase: statistics.median(one.seconds[phase] for one in of_kind) for phase in PHASES}
        totals = [one.total for one in of_kind]
        faults, lost = sum(len(one.kinds) for one in of_kind), sum(one.lost_steps for one in of_kind)
        costs.append(KindCost(kind, len(of_kind), faults, lost, seconds, statistics.median(totals), max(totals)))
    return costs


@dataclass(frozen=True)
class Records:
    """What the lines of a run's metrics say.

    Attributes:
        steps: steps that are there. step_seconds: their median, s. all_step_seconds: their sum, s.
        redone_seconds: time that steps took whose lines were moved aside, s.
        lost: samples of steps that are missing. repeated: samples of steps that are there twice.
        redone: lines that were moved aside because their step was done again. differing: those of them whose loss is
            not that of the second time.
    """

    steps: int
    step_seconds: float
    all_step_seconds: float
    redone_seconds: float
    lost: int
    repeated: int
    redone: int
    differing: int


def read_lines(text: str) -> list[dict[str, Any]]:
    """Records of a file of metrics; a line that a crash has cut is left out."""
    found = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            found.append(record)
    return found


def check_records(kept: Sequence[dict[str, Any]], removed: Sequence[dict[str, Any]], batch: int) -> Records:
    """Count what the metrics lack, have twice, or had otherwise. `batch`: samples of a step."""
    times = Counter(record["step"] for record in kept)
    last = max(times, default=0)
    missing = last - len(times)
    wrong = sum(record["consumed_samples"] != record["step"] * batch for record in kept)
    by_step = {record["step"]: record for record in kept}
    again = [record for record in removed if record["step"] in by_step]
    seconds = [record["step_seconds"] for record in kept]
    return Records(
        steps=len(times),
        step_seconds=statistics.median(seconds) if seconds else 0.0,
        all_step_seconds=sum(seconds),
        redone_seconds=sum(record["step_seconds"] for record in again),
        lost=(missing + wrong) * batch,
        repeated=(sum(times.values()) - len(times)) * batch,
        redone=len(again),
        differing=sum(not same(record, by_step[record["step"]]) for record in again),
    )


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lines of one step hold the same numbers, bit for bit (NaN is NaN)."""
    return all(repr(one.get(key)) == repr(other.get(key)) for key in COMPARED)


def first_difference(kept: Sequence[dict[str, Any]], quiet: Sequence[dict[str, Any]]) -> int | None:
    """First step whose numbers are not those of the quiet run, or that only one of both has; None if there is none."""
    ours, theirs = ({record["step"]: record for record in lines} for lines in (kept, quiet))
    for step in sorted(ours.keys() | theirs.keys()):
        if step not in ours or step not in theirs or not same(ours[step], theirs[step]):
            return step
    return None


def goodput(records: Records, wall: float) -> float:
    """Useful step time over wall time: each step counts once, at the median time of a step."""
    return records.steps * records.step_seconds / wall if wall > 0 else 0.0
