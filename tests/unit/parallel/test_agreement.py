"""Fingerprints of many ranks compared, and what is said of those that differ."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

from altup_moe.config.errors import PeerError, UserError
from altup_moe.config.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from altup_moe.doctor.network import free_port
from altup_moe.parallel import start_meeting
from altup_moe.parallel.agreement import MISSING, Fingerprint, Party, difference_line, parties
from altup_moe.parallel.start_meeting import StartMeeting
from altup_moe.parallel.watchdog.status import start_name


def test_three_of_2048_ranks_that_differ_are_found_and_named() -> None:
    digests = [{7: "b", 900: "b", 2047: "c"}.get(rank, "a") for rank in range(2048)]
    groups = parties(digests)
    assert [ranks[0] for ranks in groups] == [0, 7, 2047]
    assert groups[1:] == [(7, 900), (2047,)]
    common = {"train.seed": "1", "moe.top_k": "2"}
    known = [
        Party(groups[0], "n0", common),
        Party(groups[1], "n1", {**common, "train.seed": "5"}),
        Party(groups[2], "n9", {**common, "train.seed": "5", "code altup_moe/cli.py": "abc"}),
    ]
    line = difference_line(known[0], known[1:])
    assert "train.seed is 5 on ranks 7, 900 (n1), rank 2047 (n9) and 1 on the 2045 others (rank 0 on n0); " in line
    assert f"code altup_moe/cli.py is abc on rank 2047 (n9) and {MISSING} on the 2045 others" in line
    assert "top_k" not in line
    assert "\n" not in line


def test_the_majority_is_right_and_of_two_ranks_the_first() -> None:
    assert parties(["a", "b", "b"]) == [(1, 2), (0,)]
    assert parties(["b", "a"]) == [(0,), (1,)]
    assert parties(["a"] * 3) == [(0, 1, 2)]


def test_many_keys_and_ranks_are_counted_not_listed() -> None:
    other = Party(tuple(range(1, 8)), "n1", {f"k{n}": "2" for n in range(9)})
    line = difference_line(Party((0,), "n0", {f"k{n}": "1" for n in range(9)}), [other])
    assert "on ranks 1, 2, 3, 4, 5 and 2 more (n1)" in line
    assert "and 4 more keys" in line


def test_digests_know_names_from_values() -> None:
    assert Fingerprint({"a": "b", "c": "d"}).digest == Fingerprint({"c": "d", "a": "b"}).digest
    assert Fingerprint({"ab": ""}).digest != Fingerprint({"a": "b"}).digest


def _meet(
    count: int, part: Callable[[StartMeeting], object], sizes: dict[int, int] | None = None, store: Any = None
) -> list[Any]:
    """What the meeting of `count` ranks, threads here, brought each of them: a result or an error."""
    store, results = store or dist.HashStore(), [None] * count

    def rank(number: int) -> None:
        meeting = StartMeeting(store, number, (sizes or {}).get(number, count))
        try:
            with meeting.telling():
                results[number] = part(meeting)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_of_a_restart_meet_whatever_their_agents_have_counted(
    nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent of the node whose rank had died counts a restart, that of the other node does not."""
    store, numbers, names = dist.HashStore(), [], []
    sizes = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(2 // nodes), "MASTER_ADDR": "n0", "MASTER_PORT": "29500"}
    for counts in (("0", "0"), ("1" if nodes == 1 else "0", "1")):
        start = []
        for rank, count in enumerate(counts):
            monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
            monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
            place = start_meeting._Place(rank, 2, "n0", 29500)
            start.append(start_meeting._start_number(place, store, nodes == 1))
            names.append(start_name({**sizes, "TORCHELASTIC_RESTART_COUNT": count}))
        assert start[0] == start[1]
        numbers.append(start[0])
    assert numbers[0] != numbers[1]
    assert names[0] == names[1]
    assert names[2] == names[3]
    assert (names[0] != names[2]) is (nodes == 1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")  # rank 0 opens a store for every start
    assert start_meeting._start_number(place, store, nodes == 1) == 0


def test_equal_ranks_go_on() -> None:
    def part(meeting: StartMeeting) -> str:
        meeting.first_is_ready()
        meeting.agree(lambda: Fingerprint({"train.seed": "1"}))
        return "on"

    assert _meet(4, part) == ["on"] * 4


def test_all_ranks_end_and_rank_0_says_who_differs() -> None:
    def part(meeting: StartMeeting) -> None:
        meeting.agree(lambda: Fingerprint({"train.seed": str(meeting.rank // 3)}))

    errors = _meet(4, part)
    assert len({str(error) for error in errors}) == 1
    assert "train.seed is 1 on rank 3" in str(errors[0])
    assert [error.told for error in errors] == [False, True, True, True]
    assert all(isinstance(error, PeerError) and error.exit_code == 2 for error in errors)


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (RuntimeError, 1)])
def test_what_one_rank_fails_at_ends_all_at_once(kind: type[Exception], code: int) -> None:
    def part(meeting: StartMeeting) -> None:
        if meeting.rank == 2:
            raise kind("no such file")
        meeting.first_is_ready()
        meeting.agree(lambda: Fingerprint({}))

    errors = _meet(3, part)
    assert type(errors[2]) is kind
    assert getattr(errors[2], "told", False) is False, "the rank prints its own"
    for error in errors[:2]:
        assert isinstance(error, PeerError)
        assert (error.told, error.exit_code) == (True, code)
        assert str(error).startswith("rank 2 (")
        assert "no such file" in str(error)


def test_the_same_mistake_of_all_ranks_is_said_once() -> None:
    def part(meeting: StartMeeting) -> None:
        raise UserError("the same")

    assert [error.told for error in _meet(3, part)].count(False) == 1


def test_ranks_that_count_differently_are_named() -> None:
    errors = _meet(2, lambda meeting: meeting.agree(lambda: Fingerprint({})), sizes={1: 3})
    said = {str(error) for error in errors}
    assert any("WORLD_SIZE is " in text and "3 on rank 1" in text and "2 on rank 0" in text for text in said)


def test_a_rank_that_is_there_twice_is_named() -> None:
    store = dist.HashStore()
    with StartMeeting(store, 0, 2).telling():
        pass
    with pytest.raises(UserError, match="RANK 0 is there twice"), StartMeeting(store, 0, 2).telling():
        pass


def test_details_are_asked_of_one_rank_of_each_kind() -> None:
    """Rank 0 reads as many entries as there are kinds of ranks, not as there are ranks."""
    store = dist.HashStore()

    def part(meeting: StartMeeting) -> None:
        meeting.agree(lambda: Fingerprint({"seed": str(meeting.rank % 2)}))

    _meet(6, part, store=store)
    assert sorted(n for n in range(6) if store.check([f"0/detail/{n}"])) == [0, 1]
    assert json.loads(store.get("0/verdict")) == [0, 1]


@pytest.mark.parametrize(("by_agent", "code"), [("True", EXIT_FAILED), ("False", EXIT_USER_ERROR)])
def test_a_store_that_has_gone_is_no_mistake_of_a_user(
    by_agent: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun's agents have met where the ranks are to meet: a launcher starts again after a network that was down."""
    place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {**place, "TORCHELASTIC_USE_AGENT_STORE": by_agent}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start_meeting, "GONE_SECONDS", 0.2)
    monkeypatch.setattr(start_meeting, "ARRIVE_SECONDS", 0.2)
    with pytest.raises(PeerError, match=r"nobody answers at 127\.0\.0\.1:\d+, where ranks meet") as caught:
        start_meeting._open(ends_process=False)
    assert caught.value.exit_code == code
