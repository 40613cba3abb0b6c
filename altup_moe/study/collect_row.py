"""Build the line of a row from the files that its processes wrote."""

from __future__ import annotations

import math
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.counts import count_parameters
from altup_moe.parallel.start_ranks import ROOT
from altup_moe.study.hardware import machine_here
from altup_moe.study.records import CurvePoint, Experts, Hardware, Latency, Quality, Spread, StudyRow
from altup_moe.study.spec import MeasureSpec, RowSpec, Study
from altup_moe.study.study_directory import MeasureKind, RowDirectory, StudyDirectory, read_json_or_none

CURVE_POINTS = 100
"""The most training steps of a curve that are kept; steps with a validation are kept too."""


def done_row(study: Study, row: RowSpec, directory: StudyDirectory) -> StudyRow:
    """Build the line of a row that is trained and measured."""
    row_directory = directory.of_row(row)
    trained, lines = read_json_or_none(row_directory.trained) or {}, steps_of(row, directory)
    experts = trained.get("experts")
    return StudyRow(
        **_who(study, row, row_directory, trained),
        status="done",
        **_run(row, lines),
        quality=Quality(trained["valid_loss"], trained["valid_bits_per_byte"], _last_tenth(lines)),
        latency=_latency(study.measure, row, row_directory, lines) if row.role == "trained" else None,
        experts=Experts(**experts) if experts else None,
        curve=curve(row, lines),
    )


def failed_row(study: Study, row: RowSpec, directory: StudyDirectory, reason: str) -> StudyRow:
    """Build the line of a row that failed, with the figures of the steps that it took."""
    lines = steps_of(row, directory)
    row_directory = directory.of_row(row)
    who = _who(study, row, row_directory, read_json_or_none(row_directory.trained) or {})
    return StudyRow(**who, status="failed", reason=reason, **_run(row, lines), curve=curve(row, lines))


def steps_of(row: RowSpec, directory: StudyDirectory) -> list[dict[str, Any]]:
    """A row's metrics of each step so far; of one that branches off another, that one's up to there first."""
    own = directory.of_row(row).metrics()
    if row.branch is None:
        return list(own)
    before = steps_of(row.branch.row, directory)
    return [*(line for line in before if line["step"] <= row.branch.step), *own]


def _who(study: Study, row: RowSpec, row_directory: RowDirectory, trained: dict[str, Any]) -> dict[str, Any]:
    measured = read_json_or_none(row_directory.measured("steps", 0)) or {}
    machine = measured.get("machine") or trained.get("machine") or machine_here()
    return {
        "study": study.name,
        "name": row.name,
        "family": row.family,
        "seed": row.seed,
        "config_hash": row.config_hash,
        "overrides": row.overrides,
        "role": row.role,
        "commit": commit(ROOT),
        "hardware": Hardware(threads=row.threads, ranks=row.ranks, device=trained.get("device", "unknown"), **machine),
    }


def _run(row: RowSpec, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts, steps = count_parameters(row.config), lines[-1]["step"] if lines else 0
    return {
        "parameters": counts.total,
        "active_parameters": counts.active,
        "table_parameters": counts.tables,
        "flops_per_token": flops_per_token(row.config),
        "steps": steps,
        "tokens": steps * row.tokens_per_step,
        "train_seconds": sum(line["step_seconds"] for line in lines),
    }


def _last_tenth(lines: Sequence[dict[str, Any]]) -> float:
    return statistics.fmean(line["lm_loss"] for line in lines[-max(1, len(lines) // 10) :])


def curve(row: RowSpec, lines: Sequence[dict[str, Any]]) -> list[CurvePoint]:
    """Thin out the losses of a run: keep every n-th step, every validation and the last step; drop a loss of None."""
    every = max(1, math.ceil(len(lines) / CURVE_POINTS))
    return [
        CurvePoint(line["step"], line["step"] * row.tokens_per_step, line["lm_loss"], line.get("valid_loss"))
        for line in lines
        if line.get("lm_loss") is not None and (line["step"] % every == 0 or "valid_loss" in line or line is lines[-1])
    ]


def spread_of_turns(seconds: Sequence[float]) -> Spread:
    """Summarise measured seconds in ms. The 95th percentile is the value that 95 % of them do not exceed."""
    ms = sorted(1e3 * one for one in seconds)
    p95 = ms[max(0, math.ceil(0.95 * len(ms)) - 1)]
    return Spread(statistics.median(ms), p95, ms[0], ms[-1], len(ms))


def _rounds(measure: MeasureSpec, row_directory: RowDirectory, kind: MeasureKind, key: str) -> list[Any]:
    """Concatenate the values of one figure over all rounds."""
    rounds = (read_json_or_none(row_directory.measured(kind, number)) or {} for number in range(measure.rounds))
    return [value for one in rounds for value in one.get(key, [])]


def _latency(
    measure: MeasureSpec, row: RowSpec, row_directory: RowDirectory, lines: Sequence[dict[str, Any]]
) -> Latency:
    step = spread_of_turns(_rounds(measure, row_directory, "steps", "seconds"))
    exchange, exposed = worst_rank(
        _rounds(measure, row_directory, "steps", "exchange_ms"), _rounds(measure, row_directory, "steps", "exposed_ms")
    )
    notes = [read_json_or_none(file) or {} for file in sorted(row_directory.root.glob("memory-*.json"))]
    return Latency(
        train_step=step,
        train_tokens_per_second=row.tokens_per_step / step.median * 1e3,
        peak_memory_gib=max([note.get("gib", 0.0) for note in notes] + [line["memory_gib"] for line in lines]),
        prefill=spread_of_turns(_rounds(measure, row_directory, "texts", "prefill_seconds")),
        decode=spread_of_turns(_rounds(measure, row_directory, "texts", "decode_seconds")),
        all_to_all_ms=exchange,
        exposed_ms=exposed,
    )


def worst_rank(
    exchange_SR: Sequence[Sequence[float]], exposed_SR: Sequence[Sequence[float]]
) -> tuple[float | None, float | None]:
    """Return the medians over the steps S of the rank R that waited longest, so that both figures are of one rank."""
    if not exchange_SR:
        return None, None
    medians = [
        (statistics.median(exposed), statistics.median(flight))
        for flight, exposed in zip(zip(*exchange_SR, strict=True), zip(*exposed_SR, strict=True), strict=True)
    ]
    exposed, flight = max(medians)
    return flight, exposed


def commit(root: Path) -> str:
    """Commit of the checkout, with a + if tracked files differ from it; "" outside a checkout."""
    if not (root / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
