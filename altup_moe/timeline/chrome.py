"""Recordings as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format" (Google): complete events "X" with ts and dur in us, metadata events "M".
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from altup_moe.timeline.intervals import lanes
from altup_moe.timeline.records import Kind, Recording, Span

# Kind -> (first thread id, the track's name). Spans that cross go to further tracks behind the first.
_TRACKS: dict[Kind, tuple[int, str]] = {
    "compute": (100, "compute"),
    "flight": (200, "exchanges in flight"),
    "wait": (300, "waiting"),
}
_STEPS = 1

# Reserved colour names of chrome://tracing. Perfetto colours by name, so a backward span is also named as one.
_COLOURS = {"forward": "thread_state_running", "backward": "thread_state_runnable"}


def offsets(recordings: Sequence[Recording]) -> list[int]:
    """What to subtract from each recording's times (ns), so that all start at 0 and lie on one clock.

    Ranks of one host share its clock. Clocks of several hosts have nothing to do with each other: then the first step
    of each host (its earliest rank) is taken to begin at the same moment everywhere.
    """
    firsts: dict[str, int] = {}
    for recording in recordings:
        begins = [step.begin_ns for step in recording.whole()[:1]]
        firsts[recording.host] = min([*begins, *([firsts[recording.host]] if recording.host in firsts else [])] or [0])
    first = [firsts[recording.host] for recording in recordings]
    begins = [span.begin_ns - at for recording, at in zip(recordings, first, strict=True) for span in recording.spans]
    lead = min([0, *begins])  # a span may begin before the first step
    return [at + lead for at in first]


def _metadata(pid: int, name: str, **args: Any) -> dict[str, Any]:
    tid = {"tid": args.pop("tid")} if "tid" in args else {}
    return {"ph": "M", "pid": pid, **tid, "name": name, "args": args}


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
    rank = recording.rank
    yield _metadata(rank, "process_name", name=f"rank {rank} on {recording.host}" if recording.host else f"rank {rank}")
    yield _metadata(rank, "process_sort_index", sort_index=rank)
    yield _metadata(rank, "thread_name", tid=_STEPS, name="steps")
    for number, step in enumerate(recording.steps):
        yield _complete(rank, _STEPS, f"step {number}", step.begin_ns - offset, step.end_ns - offset, cat="step")
    for kind, (tid, track) in _TRACKS.items():
        for lane, spans in enumerate(lanes(s for s in recording.spans if s.kind == kind) or [[]]):
            yield _metadata(rank, "thread_name", tid=tid + lane, name=f"{track} {lane + 1}" if lane else track)
            yield _metadata(rank, "thread_sort_index", tid=tid + lane, sort_index=tid + lane)
            for span in spans:
                yield _span(rank, tid + lane, span, offset)


def write_trace(path: Path, recordings: Sequence[Recording]) -> None:
    """Write one trace: a process for each rank, with tracks for steps, compute, exchanges in flight and waits."""
    events = [
        event
        for recording, offset in zip(recordings, offsets(recordings), strict=True)
        for event in _events(recording, offset)
    ]
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}), encoding="utf-8")
