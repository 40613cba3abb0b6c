"""The page of the shipped studies: committed rows, laid out with the functions of their report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from altup_moe.study.records import StudyRow, read_rows
from altup_moe.study.report.formatting import (
    RULES,
    difference_text,
    digits,
    failed_text,
    loss_text,
    mean_and_deviation,
    ratio_text,
    sizes,
    speed_text,
)
from altup_moe.study.report.models import LATENCIES, LOSS_UNITS, UNITS, Model
from altup_moe.study.report.summary import Summary, hardware, hardware_text, summarise
from docs.generate.markdown import cell, table, text_of
from docs.generate.pairs import DELAYED, delayed_columns, longer_text, pair_tables
from docs.generate.source import ROOT
from docs.generate.study_texts import INTRODUCTION, PAIRS, READING, WHAT

RESULTS = ROOT / "configs" / "study" / "results"
REFERENCE = "dense"
"""The default of `altup-moe study report`."""
REFERENCES = {"streams": "plain", "delayed": "plain"}
"""Study -> family that the others are compared with, if it is another one."""
UNTIMED = ("delayed",)
"""Studies whose times say nothing, and whose tables leave them out."""
CAPTIONS = {
    "front": "held-out loss against latency and parameters; dotted: the Pareto front, rings: what of it is told apart",
    "curves": "held-out loss over training tokens",
    "load": "share of the tokens that each layer's experts took",
}
PICTURES: dict[str, Path] = {
    f"results/studies/{study}_{path.name}": path for study in WHAT for path in sorted((RESULTS / study).glob("*.svg"))
}
"""Path below docs/ -> the committed picture that it is a copy of."""


def page() -> str:
    """The page's text."""
    rules = (f"- {rule}" for rule in RULES)
    return text_of(["# Studies", "", INTRODUCTION, "", *rules, *(line for study in WHAT for line in _study(study))])


def _study(study: str) -> Iterator[str]:
    every = read_rows(RESULTS / study / "rows.jsonl")
    rows = [row for row in every if row.role == "trained"]
    found = summarise(rows, REFERENCES.get(study, REFERENCE))
    yield from ("", f"## {study}", "", WHAT[study], "")
    yield f"{len(found.rows)} rows, {len(found.models)} models, {len(found.failed)} failed; commit {_commits(found)}."
    if tries := len(every) - len(rows):
        yield f"{tries} more rows were tries of a rate, `altup-moe study law` lists them."
    yield from (f"{count} rows ran on {hardware_text(one)}." for one, count in hardware(found.rows))
    yield from ("", *_losses(found))
    if study == "delayed":
        columns = delayed_columns(rows)
        yield from ("", PAIRS, "", *pair_tables(rows, DELAYED, columns), "", longer_text(rows, DELAYED, columns[-1]))
    if study not in UNTIMED:
        yield from ("", *_times(found))
        yield from ("", *_ratios(found)) if found.differences else ()
    if found.failed:
        yield from ("", "Failed:", "", *(f"- {cell(failed_text(row))}" for row in found.failed))
    yield from ("", READING[study])
    if found.notes:
        yield from ("", *(f"- Note: {cell(note)}." for note in found.notes))
    for path, source in PICTURES.items():
        if source.parent.name == study:
            yield from ("", f"![{study}: {CAPTIONS[source.stem]}]({path.removeprefix('results/')})")


def _commits(found: Summary) -> str:
    return ", ".join(f"`{commit[:12]}`" for commit in dict.fromkeys(row.commit or "unknown" for row in found.rows))


def _losses(found: Summary) -> list[str]:
    """A table: each model's size and held-out loss."""
    head = ["model", "family", "seeds", "parameters", "active", "held-out loss", "bits per byte"]
    head += ["difference of losses"] if found.differences else []
    rows = []
    for model in found.models:
        loss, bits = (loss_text(model, unit) for unit in LOSS_UNITS)
        line = [f"`{model.name}`", model.family, str(len(model.rows)), *sizes(model), loss, bits]
        rows.append(line + ([difference_text(found.differences.get(model.name))] if found.differences else []))
    return table(head, rows, right=(2, 3, 4))


def _times(found: Summary) -> list[str]:
    """A table: each model's latencies, the all-to-all where there is one, and the speed at equal quality."""
    kinds = found.kinds
    waits = any(_waited(row) is not None for row in found.rows)
    head = ["model", *(f"{LATENCIES[kind]}, {UNITS[kind]}" for kind in kinds)]
    head += ["all-to-all, ms a step", "waited for, ms a step"] if waits else []
    timed = found.has_speed
    head += [f"speed at equal quality, {LATENCIES[kind]}" for kind in kinds] if timed else []
    rows = []
    for model in found.models:
        line = [f"`{model.name}`", *(mean_and_deviation(model.along(kind)) for kind in kinds)]
        line += [_all_to_all(model, "all_to_all_ms"), _all_to_all(model, "exposed_ms")] if waits else []
        if timed:
            speeds = found.speeds.get(model.name, {})
            line += ["reference" if model.family == found.reference else speed_text(speeds.get(k), True) for k in kinds]
        rows.append(line)
    return table(head, rows)


def _ratios(found: Summary) -> list[str]:
    """A table: latencies as multiples of those of the reference's model of nearest size."""
    head = ["model", "against", *(f"{LATENCIES[kind]}, times the reference's" for kind in found.kinds)]
    rows = [
        [f"`{name}`", f"`{gap.other}`", *(ratio_text(found.ratios[name][kind]) for kind in found.kinds)]
        for name, gap in found.differences.items()
    ]
    return table(head, rows)


def _waited(row: StudyRow) -> float | None:
    return None if row.latency is None else row.latency.exposed_ms


def _all_to_all(model: Model, field: str) -> str:
    found = model.stat(lambda row: None if row.latency is None else getattr(row.latency, field))
    return "-" if found is None else digits(found.mean)
