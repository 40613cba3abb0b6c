"""The committed results are those of the shipped studies: every row of each, finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.study.read_study import load_study
from altup_moe.study.records import read_rows

STUDIES = Path(__file__).parents[3] / "configs" / "study"


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.yaml")), ids=lambda file: file.stem)
def test_results_have_every_row_once(file: Path) -> None:
    rows, study = read_rows(STUDIES / "results" / file.stem / "rows.jsonl"), load_study(file)
    wanted = {(row.name, row.family, row.seed): row.overrides for row in study.rows}
    assert len(rows) == len(wanted)
    assert {(row.name, row.family, row.seed): row.overrides for row in rows} == wanted
    assert all(row.status == "done" and row.latency and not row.commit.endswith("+") for row in rows)
