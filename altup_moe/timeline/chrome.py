"""Recordings as a Chrome trace, for ui.perfetto.dev and chrome://tracing.

Format: "Trace Event Format" (Google): complete events "X" with ts and dur in us, metadata events "M".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from altup_moe.timeline.intervals import lanes
from altup_moe.timeline.records import Recording, Span, SpanKind

# SpanKind -> (first thread id, the track's name). Spans that cross each other get additional tracks.
_TRACKS: dict[SpanKind, tuple[int, str]] = {
    "compute": (100, "compute"),
    "flight": (200, "exchanges in flight"),
    "wait": (300, "waiting"),
}
_STEPS = 1

# Reserved colour names of chrome://tracing. Perfetto colours by name, so backward spans also have names of their own.
_COLOURS = {"forward": "thread_state_running", "backward": "thread_state_runnable"}


def offsets(recordings: Sequence[Recording]) -> list[int]:
    """Offset (ns) to subtract from the times of each recording, so that all share one clock that starts at 0.

    Ranks of one host share its clock. Clocks of different hosts are unrelated, so the first step of each host (of its
    earliest rank) is assumed to begin at the same moment.
    """
    firsts: dict[str, int] = {}
    for recording in recordings:
        for step in recording.whole()[:1]:
            firsts[recording.host] = min(step.begin_ns, firsts.get(recording.host, step.begin_ns))
    starts = [firsts.get(recording.host, 0) for recording in recordings]
    # Spans may begin before the first step.
    lead = min((s.begin_ns - at for r, at in zip(recordings, starts, strict=True) for s in r.spans), default=0)
    return [at + min(0, lead) for at in starts]


def _metadata(what: str, args: dict[str, Any], **ids: int) -> dict[str, Any]:
    return {"ph": "M", "name": what, "args": args, **ids}


def _complete(pid: int, tid: int, name: str, begin_ns: int, end_ns: int, **more: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": name,
        "ts": begin_ns / 1e3,
        "dur": (end_ns - begin_ns) / 1e3,
        **more,
    }


def _span(pid: int, tid: int, span: Span, offset: int) -> dict[str, Any]:
    name = span.name if span.phase == "forward" else f"{span.name} backward"
    details = {"cat": span.kind, "cname": _COLOURS[span.phase], "args": {"phase": span.phase, "span": span.name}}
    return _complete(pid, tid, name, span.begin_ns - offset, span.end_ns - offset, **details)


def _events(recording: Recording, offset: int) -> Iterator[dict[str, Any]]:
    rank, host = recording.rank, recording.host
    yield _metadata("process_name", {"name": f"rank {rank} on {host}" if host else f"rank {rank}"}, pid=rank)
    yield _metadata("process_sort_index", {"sort_index": rank}, pid=rank)
    yield _metadata("thread_name", {"name": "steps"}, pid=rank, tid=_STEPS)
    for number, step in enumerate(recording.steps):
        yield _complete(rank, _STEPS, f"step {number}", step.begin_ns - offset, step.end_ns - offset, cat="step")
    for kind, (tid, track) in _TRACKS.items():
        for lane, spans in enumerate(lanes(s for s in recording.spans if s.kind == kind) or [[]]):
            ids = {"pid": rank, "tid": tid + lane}
            yield _metadata("thread_name", {"name": f"{track} {lane + 1}" if lane else track}, **ids)
            yield _metadata("thread_sort_index", {"sort_index": tid + lane}, **ids)
            for span in spans:
                yield _span(rank, tid + lane, span, offset)


def write_trace(path: Path, recordings: Sequence[Recording]) -> None:
    """Write a trace with a process for each rank: tracks for steps, compute, exchanges in flight and waits."""
    events = [
        event
        for recording, offset in zip(recordings, offsets(recordings), strict=True)
        for event in _events(recording, offset)
    ]
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}), encoding="utf-8")
