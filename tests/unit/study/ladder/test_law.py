"""`study law` on rows whose law is known: it is found, the largest size predicted, and who is not tuned not judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.config import ConfigError, UserError
from altup_moe.study.ladder.law import analyse, point_of, tuned_models
from altup_moe.study.ladder.law_text import TRANSFER, as_json, law_lines
from altup_moe.study.ladder.tuning import Tuned
from altup_moe.study.records import StudyRow
from tests.ladders import LAWS, SIZES, ladder


@pytest.fixture(scope="module")
def rows() -> list[StudyRow]:
    return list(ladder())


def test_a_row_is_a_point_without_its_tables(rows: list[StudyRow]) -> None:
    row = next(row for row in rows if row.role == "trained")
    point = point_of(row)
    assert point is not None
    assert (point.n, point.d, point.flops, point.run) == (1e5, 1e6, pytest.approx(6e11), "d32-s1")
    assert row.latency is not None
    assert point.seconds == pytest.approx(row.latency.train_step.median * 1e-3 * (10**6 // 8192))
    assert point_of(replace(row, status="failed", quality=None)) is None


def test_the_law_is_found_and_the_largest_size_predicted(rows: list[StudyRow]) -> None:
    found = analyse(rows, "dense", shared=True, draws=200)
    for family, law in LAWS.items():
        for n, d in ((1e5, 1e6), (8e5, 3.2e7), (2.4e6, 9.6e7)):
            assert found.draws.fit.laws[family].loss(n, d) == pytest.approx(law.loss(n, d), abs=0.01)
    assert len(found.predictions) == 2 * 3
    assert all(one.measured == pytest.approx(one.predicted, abs=0.05) for one in found.predictions)
    assert not found.measured.untuned


def test_a_family_that_learns_more_is_cheaper_and_by_less_at_equal_seconds(rows: list[StudyRow]) -> None:
    found = analyse(rows, "dense", shared=True, draws=200)
    flops, seconds = found.compared
    assert (flops.multiplier.axis, seconds.multiplier.axis) == ("flops", "seconds")
    assert flops.verdict == "cheaper"
    assert seconds.multiplier.ratio == pytest.approx(flops.multiplier.ratio / 1.1, rel=0.03)


def test_what_is_not_tuned_is_not_judged() -> None:
    found = analyse(list(ladder(edge=True)), "dense", shared=True, draws=100)
    assert (
        found.measured.untuned["altup-k2"]
        == "size 96: the best optim.learning_rate, 0.004, is the last one that was tried"
    )
    assert {one.verdict for one in found.compared} == {"not decided"}
    without = [row for row in ladder() if row.role == "trained"]
    assert analyse(without, "dense", shared=True, draws=100).measured.untuned["dense"] == "size 32 has no tries"


def test_the_tries_of_each_model_are_read(rows: list[StudyRow]) -> None:
    models = list(tuned_models(rows))
    assert [(one.family, one.size) for one in models] == [(family, size) for family in LAWS for size in SIZES]
    assert models[0].key == "optim.learning_rate"
    assert list(models[0].tried) == [1e-3, 2e-3, 4e-3]
    assert models[0].found == Tuned(2e-3, False)


def test_lines_and_json_say_the_same(rows: list[StudyRow]) -> None:
    failed = replace(rows[-1], status="failed", quality=None, seed=9)
    found = analyse([*rows, failed], "dense", shared=True, draws=100)
    text, content = "\n".join(law_lines(found)), as_json(found)
    json.dumps(content, allow_nan=False)
    for one in found.compared:
        assert f"{one.multiplier.ratio:.3g}" in text
    assert [one["verdict"] for one in content["multipliers"]] == [one.verdict for one in found.compared]
    assert "1 row(s) failed, and are left out" in text
    assert content["failed"] == 1
    assert len(content["points"]) == 2 * 4 * 3 * 3
    assert "yes" in text or "no" in text


def test_mistakes_are_named(rows: list[StudyRow], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference='moe': one of the families dense, altup-k2 would fit"):
        analyse(rows, "moe")
    with pytest.raises(UserError, match="no trained row of a ladder"):
        analyse([row for row in rows if row.role == "tuning"], "dense")
    few = [row for row in rows if row.role == "trained" and row.overrides["model.hidden_size"] < 64]
    with pytest.raises(UserError):
        analyse(few, "dense")


def test_without_a_law_the_tuning_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sizes are too few for a law. The best rate stays from 32 to 96, so that it costs nothing there."""
    rows = [row for row in ladder() if row.overrides["model.hidden_size"] in (32, 96)]
    (tmp_path / "rows.jsonl").write_text("".join(row.line() + "\n" for row in rows))
    assert main(["study", "law", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = {line.split()[0]: line.split()[1:] for line in lines[lines.index(TRANSFER) + 2 :][:2]}
    assert said["dense"] == ["32", "96", "optim.learning_rate", "0.002", "3.0000", "0.002", "3.0000", "+0.0000"]
    assert any(line.startswith("no law is fitted: ") for line in lines)
    assert main(["study", "law", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["cost"] for one in told["transfer"]] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="reference"):
        analyse(list(ladder()), "nobody")
    assert main(["study", "law", str(tmp_path), "--draws", "0"]) == 2
