"""The page of the shipped ladders: what `altup-moe study law` printed of the committed rows, and their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from altup_moe.study.records import read_rows
from altup_moe.study.report.summary import hardware, hardware_text
from docs.generate.ladder_texts import INTRODUCTION, READING, WHAT
from docs.generate.markdown import text_of
from docs.generate.studies import RESULTS

LAW = "law.txt"
"""What `altup-moe study law configs/study/results/NAME --shared` printed. A bootstrap's last digits differ between
processors, so the page holds what was printed; a test fits again and compares."""
CAPTIONS = {
    "scaling_flops": "held-out loss against training FLOPs, the best losses of each family's law, and their bands",
    "scaling_seconds": "the same against training seconds on the machine that measured the steps",
    "scaling_held_out": "the largest size: measured, and predicted from the smaller ones",
    "scaling_multipliers": "compute multipliers against the dense family, with 90 % intervals",
    "scaling_tuning": "the rates that were tried, and the one that was taken",
}
PICTURES: dict[str, Path] = {
    f"results/studies/{study}_{path.name}": path for study in WHAT for path in sorted((RESULTS / study).glob("*.svg"))
}
"""Path below docs/ -> the committed picture that it is a copy of."""


def page() -> str:
    """The page's text."""
    return text_of(["# Scaling ladders", "", INTRODUCTION, *(line for study in WHAT for line in _ladder(study))])


def _ladder(study: str) -> Iterator[str]:
    rows = read_rows(RESULTS / study / "rows.jsonl")
    tries = sum(row.role == "tuning" for row in rows)
    commits = ", ".join(f"`{commit[:12]}`" for commit in dict.fromkeys(row.commit or "unknown" for row in rows))
    yield from ("", f"## {study}", "", WHAT[study], "")
    yield f"{len(rows)} rows, {tries} of them tries of a rate; commit {commits}."
    yield from (f"{count} rows ran on {hardware_text(one)}." for one, count in hardware(rows))
    yield from ("", READING[study], "", "```text", (RESULTS / study / LAW).read_text().rstrip(), "```")
    for path, source in PICTURES.items():
        if source.parent.name == study:
            yield from ("", f"![{study}: {CAPTIONS[source.stem]}]({path.removeprefix('results/')})")
