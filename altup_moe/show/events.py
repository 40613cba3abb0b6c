"""What happened to a run besides its steps: starts and resumes, changed keys, gaps, steps done again, skipped steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from altup_moe.config.resume_keys import spelled_changes
from altup_moe.report.formatting import digits
from altup_moe.show.read_run import Line, RunFiles, number

MOST = 20
"""Skipped steps that are named one by one."""


@dataclass(frozen=True)
class Event:
    """Something after `step` steps. ``when``: UTC, "" if it was not recorded."""

    step: int
    when: str
    what: str


def resumes(run: RunFiles) -> list[int]:
    """Steps after which the run was started again, ascending.

    Each start is recorded. Of a run of an older version only those are known that changed keys, or did steps again.
    """
    known = {start["step"] for start in run.starts[1:]}
    before = run.starts[0]["step"] if run.starts else run.step + 1
    known |= {line["step"] - 1 for line in run.lines if "changed" in line and line["step"] <= before}
    known |= {runs[0] - 1 for runs in _runs_of_steps(run.removed) if runs[0] <= before}
    return sorted(known)


def events(run: RunFiles) -> list[Event]:
    """All that is known, by step."""
    found = [
        *_starts(run),
        *_older_resumes(run),
        *_changes(run),
        *_gaps(run),
        *_done_again(run),
        *_skipped(run),
        *_profiles(run),
    ]
    return sorted(found, key=lambda event: event.step)


def _starts(run: RunFiles) -> Iterator[Event]:
    for i, start in enumerate(run.starts):
        source = start.get("checkpoint")
        on = f"on {start.get('ranks')} rank(s) ({start.get('layout')}), {start.get('device')}"
        if start["step"]:
            text = f"{'resumed' if i else 'went on'} from {source} {on}"
        elif i:
            text = f"started again from step 0 {on}"
        else:
            text = f"started {on}" + (f", from the weights of {source}" if source else "")
        when = str(start.get("time", "")).removesuffix("+00:00").replace("T", " ")
        yield Event(start["step"], when, text)


def _older_resumes(run: RunFiles) -> Iterator[Event]:
    recorded = {start["step"] for start in run.starts}
    for step in resumes(run):
        if step not in recorded:
            yield Event(step, "", "resumed (a start of an older version)")


def _changes(run: RunFiles) -> Iterator[Event]:
    known = {(line["step"] - 1, _spelled(line["changed"])) for line in run.lines if "changed" in line}
    if run.manifest is not None:
        known |= {(change["step"], _spelled(change["keys"])) for change in run.manifest.changes}
    for step, text in sorted(known):
        yield Event(step, "", f"changed {text}")


def _spelled(changed: object) -> str:
    if not isinstance(changed, dict) or not all(isinstance(v, list) and len(v) == 2 for v in changed.values()):
        return str(changed)
    return spelled_changes({key: (before, now) for key, (before, now) in changed.items()})


def _gaps(run: RunFiles) -> Iterator[Event]:
    if run.lines and run.lines[0]["step"] > 1:
        yield Event(0, "", f"no lines of steps 1 to {run.lines[0]['step'] - 1}")
    for before, after in pairwise(run.lines):
        if after["step"] > before["step"] + 1:
            yield Event(before["step"], "", f"no lines of steps {before['step'] + 1} to {after['step'] - 1}")


def _runs_of_steps(lines: tuple[Line, ...]) -> list[list[int]]:
    """Steps of neighbouring lines that follow each other: what each resume has moved out of the metrics."""
    found: list[list[int]] = []
    for line in lines:
        if found and line["step"] == found[-1][-1] + 1:
            found[-1].append(line["step"])
        else:
            found.append([line["step"]])
    return found


def _done_again(run: RunFiles) -> Iterator[Event]:
    for steps in _runs_of_steps(run.removed):
        what = f"step {steps[0]} was" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]} were"
        yield Event(steps[0] - 1, "", f"{what} done again (before: metrics.removed.jsonl)")


def _profiles(run: RunFiles) -> Iterator[Event]:
    for line in run.lines:
        known = [number(line, key) for key in ("exchange_ms", "exposed_ms", "mixing_ms", "mixing_hidden_ms")]
        exchange, exposed, mixing, hidden = (digits(value) if value is not None else "-" for value in known)
        if any(value is not None for value in known):
            what = f"exchange {exchange} ms a step, of which {exposed} ms were waited for"
            yield Event(line["step"], "", f"profile: {what}; mixing {mixing} ms, of which {hidden} ms were hidden")


def _skipped(run: RunFiles) -> Iterator[Event]:
    before, found = 0.0, []
    for line in run.lines:
        total = number(line, "skipped_steps") or 0.0
        if total > before:
            found.append(line["step"])
        before = total
    for step in found[:MOST]:
        yield Event(step, "", "the step was skipped: its gradient was not finite")
    if len(found) > MOST:
        yield Event(found[MOST], "", f"{len(found) - MOST} more skipped steps, up to step {found[-1]}")
