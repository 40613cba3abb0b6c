"""The trace is what Perfetto reads, and holds every span in its place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from altup_moe.timeline.chrome import write_trace
from altup_moe.timeline.records import Recording, read_recording, write_recording
from tests.unit.timeline.spans_for_tests import ms, two_steps


def trace(path: Path, recordings: list[Recording]) -> list[dict[str, Any]]:
    write_trace(path / "trace.json", recordings)
    return json.loads((path / "trace.json").read_text())["traceEvents"]


def tracks(events: list[dict[str, Any]]) -> dict[tuple[int, int], str]:
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}


def test_every_span_lies_on_its_track(tmp_path: Path) -> None:
    events = trace(tmp_path, [two_steps(0, shift=50.0), two_steps(1, shift=51.0)])
    names = tracks(events)
    complete = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"X", "M"}
    assert {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"} == {
        0: "rank 0 on a",
        1: "rank 1 on a",
    }
    placed = Counter((e["pid"], names[e["pid"], e["tid"]]) for e in complete)
    one = {"steps": 2, "compute": 7, "exchanges in flight": 1, "waiting": 1}
    assert placed == Counter({(rank, track): n for rank in (0, 1) for track, n in one.items()})
    (flight,) = [e for e in complete if e["pid"] == 1 and e["cat"] == "flight"]
    # Rank 1 began 1 ms later on the clock they share; us.
    assert (flight["name"], flight["ts"], flight["dur"]) == ("dispatch", 3000.0, 4000.0)


def test_forward_and_backward_differ(tmp_path: Path) -> None:
    events = [e for e in trace(tmp_path, [two_steps()]) if e.get("args", {}).get("span") == "mix"]
    assert [(e["name"], e["args"]["phase"]) for e in events] == [
        ("mix", "forward"),
        ("mix backward", "backward"),
        ("mix", "forward"),
    ]
    assert events[0]["cname"] != events[1]["cname"]


def test_crossing_exchanges_get_tracks_of_their_own(tmp_path: Path) -> None:
    spans = [ms("dispatch", "flight", 0, 4), ms("combine", "flight", 2, 6)]
    events = trace(tmp_path, [Recording(0, "a", spans)])
    names = tracks(events)
    on = {e["name"]: names[0, e["tid"]] for e in events if e["ph"] == "X"}
    assert on == {"dispatch": "exchanges in flight", "combine": "exchanges in flight 2"}


def test_hosts_are_aligned_at_their_first_step(tmp_path: Path) -> None:
    ranks = [two_steps(0, "a", 5.0), two_steps(1, "a", 6.0), two_steps(2, "b", 9000.0)]
    events = trace(tmp_path, ranks)
    begins = {e["pid"]: e["ts"] for e in events if e["name"] == "step 0"}
    assert begins == {0: 0.0, 1: 1000.0, 2: 0.0}


def test_nothing_begins_before_zero(tmp_path: Path) -> None:
    recording = two_steps(shift=5.0)
    recording.spans.insert(0, ms("load", "compute", 3, 4))
    begins = {e["name"]: e["ts"] for e in trace(tmp_path, [recording]) if e["ph"] == "X"}
    assert (begins["load"], begins["step 0"]) == (0.0, 2000.0)


def test_no_spans_make_a_trace_without_spans(tmp_path: Path) -> None:
    assert all(e["ph"] == "M" for e in trace(tmp_path, [Recording(0)]))


@pytest.mark.parametrize("recording", [two_steps(3, "host", 1.5), Recording(1)])
def test_a_recording_survives_its_file(tmp_path: Path, recording: Recording) -> None:
    write_recording(tmp_path / "r.json", recording)
    assert read_recording(tmp_path / "r.json") == recording
