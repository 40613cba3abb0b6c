"""A dry run of a ladder: the rows to come, what all of them cost, and how long they take on a cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.commands.study_plan import RowCost, row_cost
from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.counts import count_parameters
from altup_moe.plan.cluster import load_cluster
from altup_moe.plan.step import plan_step
from altup_moe.report.formatting import count
from altup_moe.study.ladder.forecast import forecast
from altup_moe.study.spec import Budget, RowSpec
from tests.unit.study.ladder.test_ladder_rows import TUNE, grown, study


def test_rows_to_come_are_known_before_anything_is_tuned(tmp_path: Path) -> None:
    found = study(tmp_path, **TUNE)
    whole = forecast(found, lambda row: None)
    assert {row.name for row in found.rows} <= {row.name for row in whole.rows}
    rates = {0.001: 3.2, 0.002: 3.0, 0.004: 3.1}
    real = grown(found, lambda row: rates[row.config.optim.learning_rate] if row.role == "tuning" else None)
    # Whatever is tuned, names, tokens, steps and branches are these.
    assert [_plan(row) for row in whole.rows] == [_plan(row) for row in real.rows]
    assert len(whole.rows) == 2 * 2 * (3 + 2 * 3)
    # Where the first tries say that the grid goes on, so does the forecast.
    lower = forecast(found, lambda row: row.config.optim.learning_rate if row.role == "tuning" else None)
    assert len(lower.rows) == len(whole.rows) + 2 * 2 * 2
    # One try that is known does not make a grid go on.
    one = forecast(found, lambda row: 3.0 if row.name.endswith("-0.001") else None)
    assert [_plan(row) for row in one.rows] == [_plan(row) for row in whole.rows]
    untuned = study(tmp_path)
    assert forecast(untuned, lambda row: None).rows == untuned.rows


def _plan(row: RowSpec) -> tuple[object, ...]:
    return row.name, row.seed, row.budget.tokens, row.config.train.steps, row.branch and row.branch.step


def test_a_dry_run_adds_up_the_whole_ladder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study(tmp_path, **TUNE)
    words = ["study", "run", str(tmp_path / "ladder.yaml"), "--dir", str(tmp_path / "study"), "--dry-run"]
    assert main(words) == 0
    alone = capsys.readouterr().out.splitlines()
    rows = forecast(found, lambda row: None).rows
    steps = [row.config.train.steps - (row.branch.step if row.branch else 0) for row in rows]
    tokens = sum(each * row.tokens_per_step for each, row in zip(steps, rows, strict=True))
    flops = sum(each * row.tokens_per_step * flops_per_token(row.config) for each, row in zip(steps, rows, strict=True))
    assert alone[-1].startswith("ladder: 12 rows, 0 of them finished, 24 to come, in all ")
    assert f"in all {count(tokens)} tokens, {flops:.3g} FLOPs".replace("+", "") in alone[-1]
    assert sum(line.endswith("to come") for line in alone) == 24
    assert any(line.startswith("no hours: --cluster NAME") for line in alone)
    first = rows[0]
    sizes = count_parameters(first.config)
    cells = [first.name, "1", f"{sizes.total:,}", f"{sizes.active:,}", count(flops_per_token(first.config))]
    assert alone[1].split() == [
        *cells,
        f"{first.config.train.steps * first.tokens_per_step:,}",
        f"{first.config.train.steps}",
        "1",
    ]

    assert main([*words, "--cluster", "h100x8"]) == 0
    timed = capsys.readouterr().out.splitlines()
    assert timed[0].split()[-2:] == ["hours", "state"]
    cluster = load_cluster("h100x8")
    costs = [row_cost(row, cluster) for row in rows]
    longest = max(rows, key=lambda row: row.config.train.steps)
    seconds = plan_step(longest.config, cluster, 1).seconds * longest.config.train.steps
    assert row_cost(longest, cluster).hours == pytest.approx(seconds / 3600)
    assert sum(cost.tokens or 0 for cost in costs) == tokens
    assert "hours on h100x8 one after another" in timed[-1]
    assert not any(line.startswith("no hours") for line in timed)
    assert not (tmp_path / "study").exists()


def test_hours_that_cannot_be_told_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = study(tmp_path)
    cluster = load_cluster("h100x8")
    config = found.rows[0].config
    row = replace(found.rows[0], config=replace(config, optim=replace(config.optim, optimizer="adafactor")))
    cost = row_cost(row, cluster)
    assert (cost.hours, cost.why.startswith("optim.optimizer='adafactor'")) == (None, True)
    assert row_cost(replace(found.rows[0], launcher="netlab", ranks=2), cluster).why.startswith("the network of")
    small = replace(cluster, memory_gib=1e-3)
    assert row_cost(found.rows[0], small).why == "its 1 rank(s) do not fit the memory of h100x8"
    assert row_cost(replace(found.rows[0], budget=Budget(seconds=7200)), cluster) == RowCost(None, None, None, 2.0)
    words = ["study", "run", str(tmp_path / "ladder.yaml"), "--dir", str(tmp_path / "study")]
    for more, says in (
        (["--cluster", "h100x8"], "--cluster: is of use with --dry-run alone"),
        (["--cluster", "h9", "--dry-run"], "--cluster='h9'"),
    ):
        assert main([*words, *more]) == 2
        assert says in capsys.readouterr().err
