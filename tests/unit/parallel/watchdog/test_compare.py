"""Who is behind, from notes of ranks that are written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.parallel.watchdog import report
from altup_moe.parallel.watchdog.compare import behind, divergence, waits
from altup_moe.parallel.watchdog.report import Hang, find_cause
from altup_moe.parallel.watchdog.ring import NO_PEER, Group, Record, State
from altup_moe.parallel.watchdog.status import (
    DIED,
    EXPIRED,
    RUNNING,
    Status,
    read_status,
    remove_statuses,
    write_status,
)

PAIR = Group("data", (0, 1), "7")
EXPERTS = Group("expert", (0, 1), "8")
THREE = Group("world", (0, 1, 2), "0")


class Rank:
    """Writes records of one rank, in its order."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.sequences: dict[tuple[str, int, str], int] = {}

    def does(
        self,
        operation: str,
        group: Group = PAIR,
        shape: tuple[int, ...] = (4,),
        state: State = State.ENDED,
        peer: int = NO_PEER,
        place: str = "",
    ) -> Rank:
        """Add an operation."""
        key = (group.key, peer, operation if peer != NO_PEER else "")
        sequence = self.sequences[key] = self.sequences.get(key, 0) + 1
        number = len(self.records) + 1
        ended = float(number) if state is State.ENDED else 0.0
        self.records.append(
            Record(
                number,
                sequence,
                group,
                operation,
                peer,
                "float32",
                shape,
                place or f"{operation}.py:1",
                state,
                float(number),
                ended,
            )
        )
        return self

    def waits(self, operation: str, group: Group = PAIR, **more: object) -> Rank:
        """Add an operation that it waits in."""
        return self.does(operation, group, state=State.WAITED_FOR, **more)  # type: ignore[arg-type]


def step(rank: Rank) -> Rank:
    return rank.does("all-reduce", shape=()).does("all-to-all", EXPERTS, (3,)).does("all-reduce", shape=(9,))


def notes(*ranks: Rank) -> dict[int, list[Record]]:
    return {number: rank.records for number, rank in enumerate(ranks)}


def test_a_rank_that_has_not_come_is_behind() -> None:
    told = notes(step(Rank()).waits("all-reduce", shape=()), step(Rank()))
    (wait,) = waits(told)
    assert (wait.rank, wait.missing, wait.record.sequence) == (0, (1,), 3)
    assert behind(told) == [1]
    assert divergence(told) is None


def test_of_a_chain_of_waits_the_last_is_behind() -> None:
    first, last = Group("tensor", (0, 1), "1"), Group("tensor", (1, 2), "2")
    told = notes(Rank().waits("all-reduce", first), Rank().waits("all-reduce", last), Rank())
    assert behind(told) == [2]


def test_a_receive_waits_for_the_sender() -> None:
    told = notes(Rank().does("send", peer=1).waits("receive", peer=1), Rank().does("receive", peer=0))
    (wait,) = waits(told)
    assert (wait.missing, wait.record.what) == ((1,), "receive of float32 [4] from rank 1")
    arrived = notes(Rank().waits("receive", peer=1), Rank().does("send", peer=0))
    assert [w.missing for w in waits(arrived)] == [()]


@pytest.mark.parametrize("late", [0, 1])
def test_earlier_steps_say_who_of_two_skipped_an_operation(late: int) -> None:
    """They wait for each other in different groups."""
    way = step(step(Rank())).waits("all-reduce", shape=())
    strayed = step(step(Rank())).waits("all-to-all", EXPERTS, shape=(3,))
    found = divergence(notes(strayed, way) if late == 0 else notes(way, strayed))
    assert found is not None
    assert (found.strayed, found.other, found.rank, found.skipped) == (late, late, 1 - late, True)
    assert (found.expected.group.name, found.found.group.name) == ("data", "expert")


def test_of_three_the_odd_one_out_has_strayed_where_numbers_meet() -> None:
    ranks = [Rank().does("all-reduce", THREE).waits("all-reduce", THREE, shape=(5,)) for _ in range(2)]
    odd = Rank().does("all-reduce", THREE).waits("broadcast", THREE)
    found = divergence(notes(ranks[0], odd, ranks[1]))
    assert found is not None
    assert (found.strayed, found.rank, found.expected.shape, found.found.operation) == (1, 0, (5,), "broadcast")


def test_without_earlier_steps_nobody_is_blamed() -> None:
    found = divergence(notes(Rank().waits("all-reduce"), Rank().waits("all-to-all", EXPERTS)))
    assert found is not None
    assert found.strayed is None


def test_uneven_exchanges_are_no_difference() -> None:
    assert divergence(notes(Rank().does("all-to-all", shape=(3,)), Rank().does("all-to-all", shape=(7,)))) is None


def status(rank: int, records: Rank | None = None, **changes: object) -> Status:
    base = Status(rank, 2, "start", 100 + rank, f"node{rank}", state=EXPIRED, phase="training", step=5, process="S")
    return replace(base, records=tuple((records or Rank()).records), answers=True, **changes)  # type: ignore[arg-type]


def hang(*statuses: Status, silent: dict[int, float] | None = None, starting: bool = False) -> Hang:
    return Hang(2, {one.rank: one for one in statuses}, silent or {}, 121.0, 120.0, starting)


WAITING = Rank().waits("all-reduce")


@pytest.mark.parametrize(
    ("found", "ranks", "words"),
    [
        (hang(status(0), starting=True), (1,), "has not arrived"),
        (hang(status(0, WAITING), status(1, state=DIED)), (1,), "its process has ended; it has not come to all-reduce"),
        (hang(status(0, WAITING), status(1, process="T")), (1,), "its process is stopped"),
        (
            hang(status(0, WAITING), status(1, state=RUNNING), silent={1: 60.0}),
            (1,),
            "nothing was heard of its node for 60",
        ),
        (hang(status(0, WAITING), replace(status(1), answers=False)), (1,), "holds the interpreter's lock"),
        (hang(status(0, WAITING), status(1)), (1,), "it is in Python"),
        (hang(status(0, WAITING), status(1, WAITING)), (), "a link is down: all of ranks 0, 1 on node0, node1 are in"),
    ],
)
def test_the_cause_in_words(found: Hang, ranks: tuple[int, ...], words: str) -> None:
    cause = find_cause(found)
    assert cause.ranks == ranks
    assert words in cause.why
    lines = report.summary(found, cause, "FILE")
    assert lines[0].startswith(
        "altup-moe: hang " + ("before the first step" if found.starting else "after step 5") + ": no rank has moved on"
    )
    assert lines[-1].endswith("Report: FILE")
    text = report.whole(found, cause, "FILE")
    assert "rank 0 on node0, process 100" in text


def test_a_status_comes_back_from_its_file(tmp_path: Path) -> None:
    one = status(1, step(Rank()).waits("send", peer=0), stacks="File", told=True)
    directory = tmp_path / "watchdog"
    write_status(directory, one)
    assert read_status(directory, 1) == one
    assert read_status(directory, 0) is None
    (directory / "rank_00000.json").write_text('{"rank": 0,')
    assert read_status(directory, 0) is None
    write_status(tmp_path / "no" / "such", one)
    remove_statuses(directory, [1])
    assert [file.name for file in directory.iterdir()] == ["rank_00000.json"]
    remove_statuses(directory)
    assert not directory.exists()
