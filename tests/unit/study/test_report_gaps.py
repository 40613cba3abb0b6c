"""What a study's report will not say is said before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from altup_moe.commands.study import STUDY
from altup_moe.study.read_study import load_study
from altup_moe.study.report.gaps import gaps
from altup_moe.study.report.summary import summarise
from tests.studies import row
from tests.unit.study.test_study_spec import SMALL

ONE_SEED = "one seed, so no spread, no interval, no verdict and no ring of the Pareto front: "


def test_nothing_is_missing_from_a_whole_study() -> None:
    rows = [row(name, seed, family=family) for seed in (1, 2, 3) for name, family in
            (("d", "dense"), ("d2", "dense"), ("a", "altup"))]  # fmt: skip
    assert gaps(rows, "dense") == []


def test_one_size_of_the_reference_is_no_curve() -> None:
    rows = [row(name, seed, family=family) for seed in (1, 2, 3) for name, family in (("d", "dense"), ("a", "altup"))]
    (said,) = gaps(rows, "dense")
    assert said == (
        "speed at equal quality stays a dash: it needs two models of the reference family dense, and the study has 1; "
        "the latency ratio to it is given"
    )
    found = summarise(rows, "dense")
    assert found.speeds["a"]["train_step"] is None
    assert found.ratios["a"]["train_step"] is not None
    assert said in found.notes


def test_without_the_reference_family_nothing_is_compared() -> None:
    rows = [row("a", seed, family="altup") for seed in (1, 2, 3)]
    (said,) = gaps(rows, "dense")
    assert "no row is of the reference family dense" in said
    assert "--reference FAMILY takes another ('altup')" in said
    assert gaps(rows, "altup") == []


def test_few_seeds_are_said_with_their_models() -> None:
    rows = [row("a", 1), row("b", 1), row("b", 2)]
    one, two = gaps(rows, "dense")
    assert one == f"{ONE_SEED}a"
    assert two.startswith("two seeds, so wide intervals (12.7 standard errors")
    assert two.endswith(": b")
    assert gaps(rows[:1], "dense") == [f"{ONE_SEED}all models"]


def test_a_dry_run_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"
    wide = {"name": "wide", "family": "altup", "set": {"altup.width": 2}}
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [1], "rows": [{"name": "a", "family": "dense"}, wide]}))
    assert STUDY.commands["run"].main([str(file), "--dry-run", "--dir", str(tmp_path / "study")]) == 0
    out = capsys.readouterr().out
    assert f"report: {ONE_SEED}all models\n" in out
    assert "report: speed at equal quality stays a dash" in out
    assert load_study(file).notes() == [line for line in out.splitlines() if line.startswith("report: ")]
