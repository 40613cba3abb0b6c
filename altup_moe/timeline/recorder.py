"""What `record` collects: spans that may still be open, and the exchanges in flight."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from torch.distributed import Work

from altup_moe.timeline.clocks import Clock, Mark, when_done
from altup_moe.timeline.records import Recording, Span, SpanKind, SpanPhase, Step


class OpenSpan:
    """A span being recorded. There is no stack, because the spans of two halves of a micro-batch cross each other."""

    __slots__ = ("awaited", "begin", "clock", "end", "kind", "latest", "name", "phase")

    def __init__(
        self, name: str, kind: SpanKind, phase: SpanPhase, clock: Clock, awaited: OpenSpan | None = None
    ) -> None:
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
        self.intervals: list[OpenSpan] = []
        self.steps: list[OpenSpan] = []
        self.closing: list[Callable[[], None]] = []
        # The work is kept beside its interval, for as long as its id stands for it.
        self.flying: dict[int, tuple[Work, OpenSpan]] = {}

    def open(self, name: str, kind: SpanKind, backward: bool, awaited: OpenSpan | None = None) -> OpenSpan:
        """A new interval that has not begun."""
        interval = OpenSpan(name, kind, "backward" if backward else "forward", self.clock, awaited)
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

    def wait(self, name: str, work: Work | None, backward: bool) -> OpenSpan:
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
