"""The report of a hang, from what all watchers have told: a few lines for the console, and the whole as a file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from altup_moe.parallel.watchdog.compare import Divergence, Wait, behind, divergence, pending, waits
from altup_moe.parallel.watchdog.ring import Record
from altup_moe.parallel.watchdog.status import DIED, Status

LAST_RECORDS = 12
"""Operations of each rank in the report."""
MANY = 6
"""Ranks that one line of the console names, at most."""


@dataclass(frozen=True)
class Hang:
    """What the watcher that reports knows.

    ``statuses``: by rank, of the ranks whose watcher has written one in this start. ``silent``: ranks whose watcher
    writes no more -> seconds. ``quiet``: seconds without progress of any rank. ``starting``: no step has begun.
    """

    world_size: int
    statuses: Mapping[int, Status]
    silent: Mapping[int, float]
    quiet: float
    timeout: float
    starting: bool


@dataclass(frozen=True)
class Cause:
    """Ranks that the hang is due to, and why, in words. No ranks: it is nobody's."""

    ranks: tuple[int, ...]
    why: str


def find_cause(hang: Hang) -> Cause:
    """The first of these that is so: a rank is not there, has died, is stopped, is silent, has strayed, is stuck."""
    s = hang.statuses
    absent = [rank for rank in range(hang.world_size) if rank not in s]
    if absent:
        why = "has not arrived" if hang.starting else "has ended, or its node's run directory is another one"
        return Cause(tuple(absent), why)
    died = [rank for rank, one in s.items() if one.state == DIED]
    if died:
        return Cause(tuple(died), f"its process has ended{_missing(hang, died)}")
    stopped = [rank for rank, one in s.items() if one.stopped]
    if stopped:
        return Cause(tuple(stopped), f"its process is stopped (SIGSTOP or a debugger){_missing(hang, stopped)}")
    if hang.silent:
        longest = max(hang.silent.values())
        return Cause(
            tuple(hang.silent), f"nothing was heard of its node for {longest:.0f} s{_missing(hang, [*hang.silent])}"
        )
    frozen = [rank for rank, one in s.items() if one.answers is False]
    if frozen:
        return Cause(
            tuple(frozen), f"its Python does not answer: a thread holds the interpreter's lock{_missing(hang, frozen)}"
        )
    notes = {rank: one.records for rank, one in s.items()}
    strayed = divergence(notes)
    if strayed is not None:
        return Cause((strayed.strayed,) if strayed.strayed is not None else (), _strayed_words(strayed))
    late = behind(notes)
    if late:
        return Cause(tuple(late), f"it is {_doing(s[late[0]])}{_missing(hang, late)}")
    return _nobody(hang)


def summary(hang: Hang, cause: Cause, file: str) -> list[str]:
    """The lines for the console."""
    step = max((one.step for one in hang.statuses.values()), default=0)
    when = "before the first step" if hang.starting else f"after step {step}"
    lines = [
        f"altup-moe: hang {when}: no rank has moved on for {hang.quiet:.1f} s (train.hang_timeout {hang.timeout:g})"
    ]
    if cause.ranks:
        lines.append(f"  {_names(cause.ranks, hang)}: {cause.why}")
    else:
        lines.append(f"  {cause.why}")
    lines += [f"  {line}" for line in _waiting(hang, cause)]
    lines.append(
        f"  all ranks end with exit code 77; the same command goes on from the newest checkpoint. Report: {file}"
    )
    return lines


def whole(hang: Hang, cause: Cause, file: str) -> str:
    """The report: summary, a paragraph of each rank with its last operations, and its threads' Python stacks."""
    parts = ["\n".join(summary(hang, cause, file))]
    for rank in range(hang.world_size):
        one = hang.statuses.get(rank)
        if one is None:
            parts.append(f"rank {rank}: no status")
            continue
        lines = [
            f"rank {rank} on {one.host}, process {one.pid}: {_state(one, hang)}",
            f"  {one.phase}, after step {one.step}, {one.since:.1f} s without progress",
            f"  {_doing(one)}",
            "  last operations (number in the group, begun, seconds):",
            *(f"    {_line(r)}" for r in one.records[-LAST_RECORDS:]),
            "  Python stacks (most recent call first):",
            *(f"    {line}" for line in (one.stacks or "none: the process did not run").splitlines()),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _state(one: Status, hang: Hang) -> str:
    if one.state == DIED:
        return "its process has ended"
    if one.stopped:
        return "stopped"
    if one.rank in hang.silent:
        return f"silent for {hang.silent[one.rank]:.0f} s"
    return "its Python does not answer" if one.answers is False else "running"


def _doing(one: Status) -> str:
    record = pending(one.records)
    return f"in {_where(record)}" if record is not None else f"in Python, {one.phase}: {_top(one.stacks)}"


def _where(record: Record) -> str:
    return f"{record.what}, group {record.group.name} (number {record.sequence}), called at {record.place}"


def _line(r: Record) -> str:
    begun = time.strftime("%H:%M:%S", time.localtime(r.begun)) + f"{r.begun % 1:.3f}"[1:]
    taken = f"{r.ended - r.begun:.4f}" if r.ended else r.state.name.lower().replace("_", " ")
    return f"{r.group.name} {r.sequence}: {r.what}, {begun}, {taken}, {r.place}"


def _top(stacks: str) -> str:
    """Where the main thread is: its newest call, and the newest one of this package."""
    calls = [
        line.strip() for line in stacks.rpartition("Current thread")[2].splitlines() if line.strip().startswith("File")
    ]
    if not calls:
        calls = [line.strip() for line in stacks.rpartition("Thread 0x")[2].splitlines() if "File" in line]
    ours = [call for call in calls if "altup_moe" in call and "watchdog" not in call]
    newest = (calls or ["no stack"])[0].removeprefix("File ")
    return f"{newest}, called from {ours[0].removeprefix('File ')}" if ours and ours[0] != calls[0] else newest


def _missing(hang: Hang, ranks: list[int]) -> str:
    """What others wait in that these ranks have not come to."""
    found = next((w for w in _waits(hang) if set(w.missing) & set(ranks)), None)
    return f"; it has not come to {_where(found.record)}" if found else ""


def _waits(hang: Hang) -> list[Wait]:
    return waits({rank: one.records for rank, one in hang.statuses.items()})


def _strayed_words(d: Divergence) -> str:
    if d.strayed is None:
        return (
            f"ranks {d.rank} and {d.other} part here: rank {d.rank} is in {_where(d.expected)}; "
            f"rank {d.other} in {_where(d.found)}"
        )
    did = "skipped" if d.skipped else "did not do"
    return f"{did} {_where(d.expected)}, which rank {d.rank} did; instead it went to {_where(d.found)}"


def _nobody(hang: Hang) -> Cause:
    """All ranks have come to their operations, and nothing arrives."""
    found = _waits(hang)
    if not found:
        one = min(hang.statuses.values(), key=lambda status: status.rank)
        return Cause((), f"no rank waits for another: rank {one.rank} is {_doing(one)}")
    record = found[0].record
    members = sorted({rank for wait in found for rank in wait.record.group.ranks if rank in hang.statuses})
    hosts = sorted({hang.statuses[rank].host for rank in members})
    if hang.starting and any(one.phase != "training" for one in hang.statuses.values()) and not record.group.ranks:
        return Cause((), "the ranks do not meet")
    between = f"ranks {_short(members)}" + (f" on {', '.join(hosts)}" if len(hosts) > 1 else "")
    return Cause((), f"a link is down: all of {between} are in {_where(record)}, and nothing arrives")


def _waiting(hang: Hang, cause: Cause) -> list[str]:
    """A line for each operation that ranks wait in."""
    by_place: dict[str, list[int]] = {}
    for rank, one in sorted(hang.statuses.items()):
        if rank in cause.ranks or one.state == DIED:
            continue
        by_place.setdefault(_doing(one) if pending(one.records) or one.records else one.phase, []).append(rank)
    return [f"{'rank' if len(r) == 1 else 'ranks'} {_short(r)}: {place}" for place, r in list(by_place.items())[:MANY]]


def _names(ranks: tuple[int, ...], hang: Hang) -> str:
    known = [hang.statuses[rank] for rank in ranks if rank in hang.statuses]
    word = "rank" if len(ranks) == 1 else "ranks"
    where = f" on {known[0].host} (process {known[0].pid})" if len(known) == len(ranks) == 1 else ""
    return f"{word} {_short(ranks)}{where}"


def _short(ranks: list[int] | tuple[int, ...]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:MANY])
    return shown if len(ranks) <= MANY else f"{shown} and {len(ranks) - MANY} more"
