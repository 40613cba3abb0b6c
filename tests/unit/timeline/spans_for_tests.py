"""Hand-made recordings, in ms for the reader."""

from __future__ import annotations

from altup_moe.timeline.records import Recording, Span, SpanKind, SpanPhase, Step

MS = 1_000_000


def ms(name: str, kind: SpanKind, begin: float, end: float, phase: SpanPhase = "forward") -> Span:
    """A span with its times in ms."""
    return Span(name, kind, round(begin * MS), round(end * MS), phase)


def two_steps(rank: int = 0, host: str = "a", shift: float = 0.0) -> Recording:
    """Two steps of 10 ms at `shift`: in the first, mixing (3 ms) lies 2 ms in a flight; the second has no exchange."""
    spans = [
        ms("attention", "compute", 0, 2),
        ms("dispatch", "flight", 2, 6),
        ms("mix", "compute", 3, 5),
        ms("dispatch", "wait", 5, 6),
        ms("experts", "compute", 6, 7),
        ms("axpy", "compute", 7, 7.5),
        ms("mix", "compute", 8, 9, "backward"),
        ms("mix", "compute", 12, 15),
        ms("attention", "compute", 16, 19, "backward"),
    ]
    at = round(shift * MS)
    moved = [Span(s.name, s.kind, s.begin_ns + at, s.end_ns + at, s.phase) for s in spans]
    return Recording(rank, host, moved, [Step(at, at + 10 * MS), Step(at + 10 * MS, at + 20 * MS)])
