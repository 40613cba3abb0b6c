"""Notes of collectives: what is written into the ring, what the sums are, and that nothing stays replaced."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from altup_moe.parallel.patches import PATCHES, RENAMED, STARTS_WORK
from altup_moe.parallel.topology import Topology
from altup_moe.parallel.watchdog import notes, ring
from altup_moe.parallel.watchdog.notes import METHODS, keep_notes
from altup_moe.parallel.watchdog.ring import State


def test_each_operation_is_noted_with_group_shape_and_place(alone: Topology) -> None:
    memory, _ = ring.new_memory()
    x, out = torch.ones(2, 3), torch.empty(2, 3)
    with keep_notes(memory):
        dist.all_reduce(x, group=alone.groups.tp)
        dist.all_gather([out], x)
        dist.all_gather_into_tensor(out, x, group=alone.groups.dp)
        dist.reduce_scatter_tensor(out, x, group=alone.groups.tp)
        dist.all_to_all_single(out, x, [2], [2], group=alone.groups.ep)
        dist.broadcast(x.bfloat16(), 0)
        dist.barrier()
    found = ring.read_records(memory)
    assert [(r.operation, r.group.name, r.sequence) for r in found] == [
        ("all-reduce", "tensor", 1),
        ("all-gather", "world", 1),
        ("all-gather", "data", 1),
        ("reduce-scatter", "tensor", 2),
        ("all-to-all", "expert", 1),
        ("broadcast", "world", 2),
        ("barrier", "world", 3),
    ]
    assert [r.what for r in found[4:]] == [
        "all-to-all of float32 [2, 3]",
        "broadcast of bfloat16 [2, 3]",
        "barrier",
    ]
    assert all(r.state is State.ENDED and 0 < r.begun <= r.ended and r.group.ranks == (0,) for r in found)
    here = test_each_operation_is_noted_with_group_shape_and_place
    assert {r.place.rpartition(" in ")[2] for r in found} == {here.__name__}
    assert "test_notes.py:" in found[0].place


def test_a_started_operation_is_over_when_it_was_waited_for(alone: Topology) -> None:
    memory, _ = ring.new_memory()
    with keep_notes(memory):
        before = ring.read_header(memory).progress
        work = dist.all_reduce(torch.ones(5), async_op=True)
        (record,) = ring.read_records(memory)
        assert (record.state, record.ended, ring.read_header(memory).number) == (State.STARTED, 0.0, 1)
        work.wait()
        (record,) = ring.read_records(memory)
        assert record.state is State.ENDED
        assert ring.read_header(memory).progress > before


def test_blocked_seconds_are_those_of_waits(alone: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = "torch.distributed.distributed_c10d:Work.wait"
    real = notes.original(slow)

    def wait(work: Any, *args: Any) -> Any:
        time.sleep(0.05)
        return real(work, *args)

    monkeypatch.setattr(
        notes,
        "original",
        lambda target: wait if target == slow else PATCHES[target].owner[0].__dict__.get(PATCHES[target].owner[1]),
    )
    with keep_notes():
        assert notes.blocked_seconds() == 0.0
        dist.all_reduce(torch.ones(40_000))
        dist.all_reduce(torch.ones(3), group=alone.groups.dp)
        assert 0.1 <= notes.blocked_seconds() < 60
    assert notes.blocked_seconds() == 0.0


def test_steps_and_phases_are_in_the_header() -> None:
    memory, _ = ring.new_memory()
    with keep_notes(memory):
        notes.progress("saving")
        notes.step_done(7)
        time.sleep(0.02)
        notes.step_done(8)
        notes.step_done(9)
        header = ring.read_header(memory)
    assert (header.phase, header.step, header.progress) == ("saving", 9, 4)
    assert 0.02 <= header.longest_step < 60


def test_the_ring_keeps_the_newest(alone: Topology) -> None:
    memory, _ = ring.new_memory()
    x = torch.ones(1)
    with keep_notes(memory):
        for _ in range(ring.CAPACITY + 3):
            dist.all_reduce(x)
    found = ring.read_records(memory)
    assert [found[0].number, found[-1].number, len(found)] == [4, ring.CAPACITY + 3, ring.CAPACITY]
    assert [r.number for r in ring.read_records(memory, 2)] == [ring.CAPACITY + 2, ring.CAPACITY + 3]


def test_nothing_stays_replaced(alone: Topology) -> None:
    assert set(METHODS) == {*STARTS_WORK, *(name for names in RENAMED for name in names)}
    before = dict(vars(dist.ProcessGroup))
    with keep_notes() as outer:
        assert vars(dist.ProcessGroup)["allreduce"] is not before["allreduce"]
        with keep_notes() as inner:
            assert inner is outer
    assert dict(vars(dist.ProcessGroup)) == before


def test_memory_that_is_no_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="not the notes"):
        ring.read_header(bytes(ring.SIZE))
