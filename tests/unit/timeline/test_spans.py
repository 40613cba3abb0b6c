"""What is recorded on one process, and that nothing is outside a recording."""

from __future__ import annotations

import time
from typing import Any

import pytest
from torch.futures import Future

from altup_moe.timeline.records import Span
from altup_moe.timeline.spans import current, in_flight, record, span, step, waiting


class FakeWork:
    """A work that completes when told to."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    def get_future(self) -> Future[Any]:
        return self.future


class Ticks:
    """A clock that counts its marks, from 1."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def finish(self) -> None:
        pass

    def to_ns(self, mark: int) -> int:
        return mark


def test_spans_nest_and_cross() -> None:
    with record(0, Ticks()) as recording:
        first, second = span("half 0"), span("half 1", backward=True)
        first.__enter__()
        second.__enter__()
        with span("inner"):
            pass
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
    assert recording.spans == [
        Span("half 0", "compute", 1, 5),
        Span("half 1", "compute", 2, 6, "backward"),
        Span("inner", "compute", 3, 4),
    ]


def test_a_flight_ends_when_the_work_completes_not_when_it_is_waited_for() -> None:
    work: Any = FakeWork()
    with record(0, Ticks()) as recording:
        in_flight("dispatch", work, backward=True)
        with span("mix"):
            pass
        work.future.set_result(None)
        with waiting("dispatch", work, backward=True):
            pass
    assert recording.spans == [
        Span("dispatch", "flight", 1, 4, "backward"),
        Span("mix", "compute", 2, 3),
        Span("dispatch", "wait", 5, 6, "backward"),
    ]


def test_a_completion_noted_late_does_not_outlast_the_wait() -> None:
    late, other = FakeWork(), FakeWork()
    works: Any = (late, other)
    with record(0, Ticks()) as recording:
        in_flight("late", works[0])
        in_flight("other", works[1])
        with waiting("late", works[0]):
            pass
        late.future.set_result(None)
        other.future.set_result(None)
    assert recording.spans == [
        Span("late", "flight", 1, 4),
        Span("other", "flight", 2, 6),
        Span("late", "wait", 3, 4),
    ]


def test_what_is_open_at_the_end_is_cut_there() -> None:
    work: Any = FakeWork()
    with record(0, Ticks()) as recording:
        in_flight("dispatch", work)
        span("never begun")
        span("open").__enter__()
    work.future.set_result(None)
    assert recording.spans == [Span("dispatch", "flight", 1, 3), Span("open", "compute", 2, 3)]


def test_steps_are_marked() -> None:
    with record(7, Ticks()) as recording:
        for _ in range(2):
            with step(), span("mix"):
                pass
    assert recording.rank == 7
    assert [(s.begin_ns, s.end_ns) for s in recording.steps] == [(1, 4), (5, 8)]
    assert [s.name for s in recording.spans] == ["mix", "mix"]


def test_an_error_ends_the_recording_and_keeps_it() -> None:
    with pytest.raises(KeyError), record(0) as recording, span("mix"):
        raise KeyError
    assert [s.name for s in recording.spans] == ["mix"]
    assert current() is None


def test_there_is_one_recording_at_a_time() -> None:
    with record(0) as outer:
        with pytest.raises(RuntimeError, match="under way"), record(1):
            pass
        with span("still recorded"):
            pass
    assert [s.name for s in outer.spans] == ["still recorded"]


def test_nothing_happens_outside_a_recording() -> None:
    assert span("a") is span("b") is waiting("c") is step()
    in_flight("d", None)  # type: ignore[arg-type]
    with record(0) as recording:
        pass
    with span("after"):
        pass
    assert recording.spans == []


def test_a_span_that_is_not_recorded_costs_next_to_nothing() -> None:
    def per_span() -> float:
        started = time.perf_counter()
        for _ in range(20_000):
            with span("mix"):
                pass
        return (time.perf_counter() - started) / 20_000

    # About 0.25 us; the bound leaves room for a busy machine.
    assert min(per_span() for _ in range(5)) < 2e-6
