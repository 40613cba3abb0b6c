"""The committed results are those of the shipped studies: every row of each, finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.study.read_study import load_study
from altup_moe.study.records import read_rows

STUDIES = Path(__file__).parents[3] / "configs" / "study"
FIRST_LOOK = "quick_pareto"
"""Shows what a study is, and finds nothing out: one seed, a few steps. No results of it are kept."""
KEPT = sorted(file for file in STUDIES.glob("*.yaml") if file.stem != FIRST_LOOK)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.stem)
def test_results_have_every_row_once(file: Path) -> None:
    rows, study = read_rows(STUDIES / "results" / file.stem / "rows.jsonl"), load_study(file)
    if study.grow is not None:
        losses = {row.config_hash: row.quality.valid_loss for row in rows if row.quality is not None}
        study = study.grow(lambda row: losses.get(row.config_hash))
    wanted = {(row.name, row.family, row.seed): row.overrides for row in study.rows}
    assert len(rows) == len(wanted)
    assert {(row.name, row.family, row.seed): row.overrides for row in rows} == wanted
    assert all(row.status == "done" and not row.commit.endswith("+") for row in rows)
    assert all(row.latency or row.role == "tuning" for row in rows)


def test_the_first_look_is_small_and_needs_no_download() -> None:
    rows = load_study(STUDIES / f"{FIRST_LOOK}.yaml").rows
    assert [row.name for row in rows] == ["dense", "dense-1.5d", "altup-k2", "altup-k2-moe4"]
    assert {row.seed for row in rows} == {1}
    assert {row.config.data.corpus for row in rows} == {"python-docs"}
    assert {row.budget.tokens for row in rows} == {81_920}
