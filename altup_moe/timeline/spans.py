"""Recording spans: `span`, `in_flight`, `waiting` and `step` in the code that is observed, `record` around it.

While nothing records, each of them is one look at a module's variable.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import torch
from torch.distributed import Work

from altup_moe.timeline.clocks import Clock, CudaClock, HostClock, Mark, when_done
from altup_moe.timeline.records import Kind, Phase, Recording, Span, Step


class _Nothing:
    """What stands in for a span while nothing records; shared, so that it costs no allocation."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        return None


class Interval:
    """A span in the making. Plain begin and end, no stack: spans of two halves of a micro-batch cross each other."""

    __slots__ = ("awaited", "begin", "clock", "end", "kind", "latest", "name", "phase")

    def __init__(self, name: str, kind: Kind, phase: Phase, clock: Clock, awaited: Interval | None = None) -> None:
        self.name, self.kind, self.phase, self.clock, self.awaited = name, kind, phase, clock, awaited
        self.begin: Mark | None = None
        self.end: Mark | None = None
        self.latest: Mark | None = None

    def __enter__(self) -> None:
        self.begin = self.clock.mark()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end = self.clock.mark()
        if self.awaited is not None:
            self.awaited.latest = self.end

    def span(self, cut: Mark) -> Span | None:
        """The finished span; one still open ends at `cut`, one that never began is None."""
        if self.begin is None:
            return None
        end = self.clock.to_ns(cut if self.end is None else self.end)
        if self.latest is not None:
            end = min(end, self.clock.to_ns(self.latest))
        return Span(self.name, self.kind, self.clock.to_ns(self.begin), end, self.phase)


class Recorder:
    """Collects the intervals of one rank."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.intervals: list[Interval] = []
        self.steps: list[Interval] = []
        self.closing: list[Callable[[], None]] = []
        # The work is kept beside its interval, for as long as its id stands for it.
        self.flying: dict[int, tuple[Work, Interval]] = {}

    def open(self, name: str, kind: Kind, backward: bool, awaited: Interval | None = None) -> Interval:
        """A new interval that has not begun."""
        interval = Interval(name, kind, "backward" if backward else "forward", self.clock, awaited)
        self.intervals.append(interval)
        return interval

    def launched(self, name: str, work: Work, backward: bool) -> None:
        """Begin a flight; it ends when the work completes."""
        interval = self.open(name, "flight", backward)
        interval.begin = self.clock.mark()
        self.flying[id(work)] = (work, interval)

        def landed(mark: Mark, key: int = id(work)) -> None:
            interval.end = mark
            self.flying.pop(key, None)

        when_done(work, self.clock, landed)

    def wait(self, name: str, work: Work | None, backward: bool) -> Interval:
        """A wait; the flight of `work`, where it has not landed, ends no later than the wait does."""
        _, flight = self.flying.pop(id(work), (None, None))
        return self.open(name, "wait", backward, flight)

    def fill(self, recording: Recording) -> None:
        """Turn what was collected into the recording's spans and steps."""
        cut = self.clock.mark()
        self.clock.finish()
        spans = (interval.span(cut) for interval in self.intervals)
        recording.spans = sorted((span for span in spans if span), key=lambda span: (span.begin_ns, -span.end_ns))
        steps = (interval.span(cut) for interval in self.steps)
        recording.steps = [Step(step.begin_ns, step.end_ns) for step in steps if step]


_NOTHING = _Nothing()
_recorder: Recorder | None = None


def current() -> Recorder | None:
    """The recorder of the recording under way, or None."""
    return _recorder


def span(name: str, *, backward: bool = False) -> AbstractContextManager[None]:
    """The compute thread is busy with `name` inside. It must not hand over to another half of the micro-batch inside."""
    if _recorder is None:
        return _NOTHING
    return _recorder.open(name, "compute", backward)


def in_flight(name: str, work: Work, *, backward: bool = False) -> None:
    """An asynchronous collective has just been launched: its flight begins now and ends when it completes."""
    if _recorder is not None:
        _recorder.launched(name, work, backward)


def waiting(name: str, work: Work | None = None, *, backward: bool = False) -> AbstractContextManager[None]:
    """The compute thread is blocked inside, by `work.wait()`.

    With the `work` that was given to `in_flight`, its flight ends no later than this span: its completion is noted by
    another thread, which may come a little after the thread that waits.
    """
    if _recorder is None:
        return _NOTHING
    return _recorder.wait(name, work, backward)


def step() -> AbstractContextManager[None]:
    """One training step is taken inside."""
    if _recorder is None:
        return _NOTHING
    interval = Interval("step", "compute", "forward", _recorder.clock)
    _recorder.steps.append(interval)
    return interval


@contextmanager
def record(rank: int, clock: Clock | None = None) -> Iterator[Recording]:
    """Record this process inside; the recording is filled at the end, also when an error ends it.

    Args:
        rank: whose recording it is.
        clock: how moments are taken; CUDA events where CUDA is present, the host's clock elsewhere.

    Raises:
        RuntimeError: a recording is under way.
    """
    global _recorder
    if _recorder is not None:
        raise RuntimeError("a recording is under way in this process")
    recording = Recording(rank, platform.node())
    recorder = _recorder = Recorder(clock or (CudaClock() if torch.cuda.is_available() else HostClock()))
    try:
        yield recording
    finally:
        _recorder = None
        for close in recorder.closing:
            close()
        recorder.fill(recording)
