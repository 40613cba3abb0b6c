"""What `altup-moe bench faults` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from altup_moe.bench.faults.account import PHASES, KindCost, Outage, Records, by_kind, goodput
from altup_moe.bench.faults.supervise import Seen
from altup_moe.bench.options import FaultKind, FaultsBench


@dataclass(frozen=True)
class Measured:
    """A run: what was seen of it, its outages, what its metrics hold, and seconds from its first step to its last."""

    seen: Seen
    outages: list[Outage]
    records: Records
    wall: float

    @property
    def goodput(self) -> float:
        """Useful step time over wall time."""
        return goodput(self.records, self.wall)

    @property
    def lost_seconds(self) -> dict[str, float]:
        """Seconds of all outages by phase."""
        return {phase: sum(outage.seconds[phase] for outage in self.outages) for phase in PHASES}


@dataclass(frozen=True)
class Outcome:
    """Both runs. `differs`: first step that differs from the quiet run's; None where none does or none was run.
    `broken`: why the run could not be kept going; None where it could.
    """

    run: Measured
    quiet: Measured | None
    differs: int | None
    left_out: Mapping[FaultKind, str]
    broken: str | None = None

    @property
    def kept(self) -> bool:
        """Whether nothing was lost but time."""
        r = self.run.records
        lost = r.lost or r.repeated or r.differing or self.run.seen.orphans
        return not (lost or self.differs is not None or self.broken is not None)


def as_json(options: FaultsBench, outcome: Outcome) -> dict[str, Any]:
    """The outcome as one JSON-serialisable object."""

    def measured(one: Measured) -> dict[str, Any]:
        return {
            "wall_seconds": one.wall,
            "goodput": one.goodput,
            "records": asdict(one.records),
            "lost_seconds": one.lost_seconds,
            "lost_steps": sum(outage.lost_steps for outage in one.outages),
            "outages": [{**asdict(outage), "total": outage.total} for outage in one.outages],
            "by_kind": [asdict(cost) for cost in by_kind(one.outages)],
            "faults": one.seen.victims,
            "starts": one.seen.starts,
            "codes": one.seen.codes,
            "orphans": one.seen.orphans,
        }

    return {
        "bench": asdict(options),
        "run": measured(outcome.run),
        "quiet": measured(outcome.quiet) if outcome.quiet else None,
        "first_difference": outcome.differs,
        "left_out": dict(outcome.left_out),
        "broken": outcome.broken,
        "kept": outcome.kept,
    }


def table(options: FaultsBench, outcome: Outcome) -> list[str]:
    """The outcome as lines."""
    run, records = outcome.run, outcome.run.records
    kinds = Counter(one.partition(" of ")[0] for one in run.seen.victims)
    injected = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items())) or "none"
    where = f"{options.ranks} nodes of a netlab" if options.nodes else f"{options.ranks} ranks under torchrun"
    lines = [
        f"{sum(kinds.values())} fault(s) in {run.wall:.0f} s on {where}, seed {options.seed}: {injected}",
        *[f"not injected: {kind} ({why})" for kind, why in outcome.left_out.items()],
        "",
        *_cost_table(by_kind(run.outages)),
        "",
        *_goodput_lines(run, outcome.quiet),
        f"samples lost {records.lost}, repeated {records.repeated}; "
        f"steps done again {records.redone}, with other numbers {records.differing}; orphans {run.seen.orphans}",
    ]
    if outcome.broken is not None:
        lines.append(f"it did not go on: {outcome.broken}")
    if outcome.quiet is not None:
        steps = f"{records.steps:,} steps"
        if outcome.differs is None:
            lines.append(f"numbers of {steps}: bit for bit those of a quiet run")
        else:
            lines.append(f"step {outcome.differs} of {steps} differs from a quiet run")
    return lines


def _cost_table(costs: Sequence[KindCost]) -> list[str]:
    width = max([8, *(len(cost.kind) for cost in costs)])
    phases = "".join(f"{phase:>9}" for phase in PHASES)
    lines = [f"{'outages':<{width}}   n  faults  lost steps{phases}      all     most   (median s)"]
    for cost in costs:
        counts = f"{cost.number:>4}{cost.faults:>8}{cost.lost_steps:>12}"
        seconds = "".join(f"{cost.seconds[phase]:9.2f}" for phase in PHASES)
        lines.append(f"{cost.kind:<{width}}{counts}{seconds}{cost.median:>9.2f}{cost.most:>9.2f}")
    return lines


def _goodput_lines(run: Measured, quiet: Measured | None) -> list[str]:
    records, lost = run.records, run.lost_seconds
    useful = records.steps * records.step_seconds
    slowed = max(0.0, records.all_step_seconds - useful)
    # Steps that are done again are useful the second time; what was lost is the first.
    waiting = {phase: seconds for phase, seconds in lost.items() if phase != "redo"}
    rest = run.wall - records.all_step_seconds - records.redone_seconds - sum(waiting.values())
    shares = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in waiting.items())
    beside = f"; a quiet run: {quiet.goodput:.3f}" if quiet else ""
    return [
        f"goodput {run.goodput:.3f}: {records.steps:,} steps of {1e3 * records.step_seconds:.0f} ms (median) "
        f"in {run.wall:.0f} s{beside}",
        f"seconds lost: {shares}, steps done again {records.redone_seconds:.1f}, "
        f"slower steps {slowed:.1f}, between steps {rest:.1f}",
    ]
