"""Who is behind: pure functions over the notes of all ranks.

A collective of a group has the same sequence number on all its ranks. Three kinds of difference explain a hang:

- a rank has not come to an operation that others of the group wait in, and waits for nobody itself: it is behind;
- two ranks have different operations under one number, or wait for each other in different groups: one of them has
  left its way. Of three or more ranks the odd one out has. Of two it is the one whose next operation has not
  followed the same operations before, in earlier steps;
- all ranks of a group are in the same operation and nothing arrives: the link between them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from altup_moe.parallel.watchdog.ring import NO_PEER, Record, State

Notes = Mapping[int, Sequence[Record]]
"""Records of each rank, oldest first."""
UNEVEN = {"all-to-all", "all-gather", "gather", "scatter"}
"""Operations in which ranks may hold tensors of different shapes."""
CONTEXT = 4
"""Operations before the one in question that are looked for in earlier steps, at most."""
Signature = tuple[str, str, int, str, tuple[int, ...], str]


@dataclass(frozen=True)
class Wait:
    """A rank waits in an operation, and these ranks of its group have not come to it."""

    rank: int
    record: Record
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Divergence:
    """Two ranks that should have done the same did not. ``strayed``: who left its way; None if that cannot be told.

    ``expected`` is the operation of `rank`, ``found`` what `other` did instead. If one strayed it is `other`.
    ``skipped``: what was found used to follow what was expected, so that one was left out.
    """

    rank: int
    other: int
    expected: Record
    found: Record
    strayed: int | None
    skipped: bool = False


def signature(record: Record) -> Signature:
    """What the operations of one place in a step have in common, from step to step and from rank to rank."""
    shape = () if record.operation in UNEVEN else record.shape
    return record.group.name, record.operation, 0, record.dtype, shape, record.place


def same_operation(a: Record, b: Record) -> bool:
    """Whether two ranks that meet in a group do the same. Places in the source may differ."""
    if (a.operation, a.dtype) != (b.operation, b.dtype):
        return False
    return a.operation in UNEVEN or a.shape == b.shape


def pending(records: Sequence[Record]) -> Record | None:
    """The operation that a rank waits in: the newest one waited for, else the oldest that was started."""
    waited = [r for r in records if r.state is State.WAITED_FOR]
    if waited:
        return waited[-1]
    # An operation that is called, not yet waited for: the last one, if nothing came after it.
    return records[-1] if records and records[-1].state is State.STARTED else None


def waits(notes: Notes) -> list[Wait]:
    """Who waits, and for whom; by rank."""
    reached = {rank: _reached(records) for rank, records in notes.items()}
    found = []
    for rank, records in sorted(notes.items()):
        record = pending(records)
        if record is None:
            continue
        if record.peer == NO_PEER:
            others = [r for r in record.group.ranks if r != rank and r in notes]
            missing = [r for r in others if reached[r].get((record.group.key, NO_PEER, ""), 0) < record.sequence]
        else:
            counterpart = {"send": "receive", "receive": "send"}[record.operation]
            key = (record.group.key, rank, counterpart)
            missing = [r for r in [record.peer] if r in notes and reached[r].get(key, 0) < record.sequence]
        found.append(Wait(rank, record, tuple(missing)))
    return found


def behind(notes: Notes) -> list[int]:
    """Ranks that others wait for and that wait for nobody themselves: in Python, or in an operation nobody misses."""
    waiting = {wait.rank: wait for wait in waits(notes)}
    missed = {rank for wait in waiting.values() for rank in wait.missing}
    return sorted(rank for rank in missed if rank not in waiting or not waiting[rank].missing)


def divergence(notes: Notes) -> Divergence | None:
    """The first place at which ranks did different things; None if they agree as far as the notes go."""
    return _by_sequence(notes) or _in_a_circle(notes)


def _reached(records: Sequence[Record]) -> dict[tuple[str, int, str], int]:
    """The newest sequence number by group and (for sends and receives) peer and kind."""
    newest: dict[tuple[str, int, str], int] = {}
    for r in records:
        key = (r.group.key, r.peer, "" if r.peer == NO_PEER else r.operation)
        newest[key] = max(newest.get(key, 0), r.sequence)
    return newest


def _by_sequence(notes: Notes) -> Divergence | None:
    """One number of one group, different operations. The earliest by the clock of the first rank to begin."""
    meetings: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
    for rank, records in notes.items():
        for r in records:
            if r.peer == NO_PEER:
                meetings[r.group.key, r.sequence][rank] = r
    differing = []
    for met in meetings.values():
        first = next(iter(met.values()))
        if any(not same_operation(first, r) for r in met.values()):
            differing.append(met)
    if not differing:
        return None
    met = min(differing, key=lambda found: min(r.begun for r in found.values()))
    kinds: Counter[tuple[str, str, tuple[int, ...]]] = Counter(_kind(r) for r in met.values())
    (usual, most), *rest = kinds.most_common()
    rank = min(r for r in met if _kind(met[r]) == usual)
    other = min(r for r in met if _kind(met[r]) != usual)
    if most > rest[0][1]:
        return Divergence(rank, other, met[rank], met[other], other, _followed(notes[rank], met[rank], met[other]))
    return _judged(notes, rank, other, met[rank], met[other])


def _in_a_circle(notes: Notes) -> Divergence | None:
    """Two ranks that wait for each other in operations of different groups."""
    waiting = {wait.rank: wait for wait in waits(notes)}
    for rank, wait in waiting.items():
        for other in wait.missing:
            if other in waiting and rank in waiting[other].missing:
                return _judged(notes, rank, other, wait.record, waiting[other].record)
    return None


def _kind(record: Record) -> tuple[str, str, tuple[int, ...]]:
    return record.operation, record.dtype, () if record.operation in UNEVEN else record.shape


def _judged(notes: Notes, rank: int, other: int, mine: Record, others: Record) -> Divergence:
    """Decide by earlier steps which of two operations belongs after those before it."""
    a, b = _times(notes[rank], mine, mine), _times(notes[other], others, others)
    # How often the other's operation came after what this rank did before, in earlier steps; and this rank's.
    a_as_b, b_as_a = _times(notes[rank], mine, others), _times(notes[other], others, mine)
    if a > a_as_b and b_as_a >= b:
        return Divergence(rank, other, mine, others, other, _followed(notes[rank], mine, others))
    if b > b_as_a and a_as_b >= a:
        return Divergence(other, rank, others, mine, rank, _followed(notes[other], others, mine))
    return Divergence(rank, other, mine, others, None)


def _times(records: Sequence[Record], at: Record, following: Record) -> int:
    """How often `following` came after the operations that precede `at`, before; by the longest context ever seen."""
    signatures = [signature(r) for r in records]
    end = next(index for index, r in enumerate(records) if r.number == at.number)
    wanted = signature(following)
    for length in range(min(CONTEXT, end), 0, -1):
        context = signatures[end - length : end]
        starts = [i for i in range(length, end) if signatures[i - length : i] == context]
        if starts:
            return sum(signatures[i] == wanted for i in starts)
    return 0


def _followed(records: Sequence[Record], first: Record, second: Record) -> bool:
    """Whether `second` came soon after `first` before: within a step's worth of the rank's notes."""
    signatures = [signature(r) for r in records]
    one, two = signature(first), signature(second)
    return any(s == one and two in signatures[i + 1 : i + 3] for i, s in enumerate(signatures))
