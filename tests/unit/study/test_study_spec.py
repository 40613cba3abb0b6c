"""A study's file: what it says becomes rows; what it cannot mean is one line with the key at fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from altup_moe.config import ConfigError, UserError
from altup_moe.study.read_study import load_study
from altup_moe.study.spec import RowSpec

ROOT = Path(__file__).parents[3]
SHIPPED = sorted((ROOT / "configs" / "study").glob("*.yaml"))
BASE = {
    "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_query_groups": 2, "seq_length": 32},
    "altup": {"width": 1},
    "train": {"micro_batch_size": 2, "global_batch_size": 4},
}
SMALL = {"base": BASE, "seeds": [1, 2], "budget": {"tokens": 1000}, "rows": [{"name": "dense"}]}


def load(directory: Path, **keys: object) -> list[RowSpec]:
    file = directory / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **keys}, sort_keys=False))
    return load_study(file).rows


def problem(directory: Path, **keys: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(directory, **keys)
    return str(caught.value)


EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", [*SHIPPED, *EXAMPLES], ids=lambda path: path.stem)
def test_a_shipped_study_parses_and_fits(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem
    assert study.measure.train_steps >= 20


def test_the_promised_ones_are_shipped() -> None:
    names = {path.stem: {row.name for row in load_study(path).rows} for path in SHIPPED}
    assert {"dense", "dense-1.5d", "dense-2d", "altup-k2", "altup-k4", "altup-k2-same"} <= names["paper_small"]
    assert {"dense", "moe8-c1.25", "moe8-cnone", "altup-k2-moe8-c1.0"} <= names["moe_capacity"]
    assert {"inline-blocking-100mbit", "deferred-async-halves-400mbit"} <= names["overlap"]


def test_rows_and_grid_are_crossed_with_seeds_one_seed_after_the_other(tmp_path: Path) -> None:
    grid = {"name": "k{altup.width}-{altup.select}", "family": "altup", "set": {
        "altup.width": [2, 4], "altup.select": ["same", "alternating"]}}  # fmt: skip
    rows = load(tmp_path, grid=grid)
    names = ["dense", "k2-same", "k2-alternating", "k4-same", "k4-alternating"]
    assert [(row.name, row.seed) for row in rows] == [(name, seed) for seed in (1, 2) for name in names]
    last = rows[-1]
    assert (last.config.altup.width, last.config.altup.select, last.config.train.seed) == (4, "alternating", 2)
    assert last.overrides == {"altup.width": 4, "altup.select": "alternating"}
    assert last.family == "altup"


def test_a_grid_names_its_rows_itself(tmp_path: Path) -> None:
    rows = load(tmp_path, rows=[], grid={"set": {"altup.width": [1, 2], "altup.recycled": [True]}})
    assert [row.name for row in rows[:2]] == ["width-1-recycled-true", "width-2-recycled-true"]


def test_tokens_become_whole_steps(tmp_path: Path) -> None:
    row = load(tmp_path)[0]
    # 4 samples of 32 tokens: 7.8 steps.
    assert row.config.train.steps == 8
    assert row.tokens_per_step == 128


def test_a_run_s_file_is_no_study_and_what_is_missing_has_an_example(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is the configuration of a run, no study; .*altup-moe train"):
        load_study(ROOT / "configs" / "quickstart.yaml")
    file = tmp_path / "no_budget.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in SMALL.items() if key != "budget"}))
    with pytest.raises(ConfigError, match=r"budget=None: is missing, as in budget: \{tokens: 2_000_000\}"):
        load_study(file)


def test_a_budget_below_one_step_is_said(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    for tokens, said in (
        (100, ["budget.tokens=100 is less than one step of dense (128 tokens): 3 of 3 rows"]),
        (128, []),
    ):
        file.write_text(yaml.safe_dump({**SMALL, "seeds": [1, 2, 3], "budget": {"tokens": tokens}}))
        assert [note.removesuffix(" train one step") for note in load_study(file).notes()] == said


def test_a_base_may_be_a_file_and_ranks_a_row_s_own(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, "train": {**BASE["train"], "steps": 7}}))
    rows = [{"name": "alone"}, {"name": "pair", "set": {"ranks": 2, "launcher": "netlab", "rate": "9mbit"}}]
    alone, pair = load(tmp_path, base="base.yaml", seeds=[1], rows=rows)
    assert (alone.ranks, alone.launcher, alone.rate) == (1, "torchrun", None)
    assert (pair.ranks, pair.launcher, pair.rate) == (2, "netlab", "9mbit")
    assert alone.config.train.steps == 8


def test_the_hash_has_all_that_figures_depend_on_and_no_more(tmp_path: Path) -> None:
    row = load(tmp_path)[0]
    config = row.config
    elsewhere = replace(
        config,
        log=replace(config.log, run_dir="elsewhere", interval=7),
        data=replace(config.data, cache="there"),
        checkpoint=replace(config.checkpoint, save_interval=3),
    )
    assert replace(row, config=elsewhere).config_hash == row.config_hash
    changed = [
        replace(row, ranks=2),
        replace(row, rate="1mbit"),
        replace(row, threads=2),
        replace(row, config=replace(config, train=replace(config.train, seed=9))),
        replace(row, config=replace(config, optim=replace(config.optim, learning_rate=1.0))),
        replace(row, config=replace(config, checkpoint=replace(config.checkpoint, initial_load_path="runs/x"))),
    ]
    assert len({row.config_hash, *(each.config_hash for each in changed)}) == 1 + len(changed)


def test_a_row_comes_after_another_of_its_seed_and_is_another_run(tmp_path: Path) -> None:
    tuned = {"name": "tuned", "after": "dense", "set": {"optim.learning_rate": 0.1}}
    rows = load(tmp_path, rows=[{"name": "dense"}, tuned], grid={"set": {"altup.width": [2]}, "after": "tuned"})
    assert [row.after and (row.after.name, row.after.seed) for row in rows] == [
        None, ("dense", 1), ("tuned", 1), None, ("dense", 2), ("tuned", 2)]  # fmt: skip
    alone = replace(rows[1], after=None)
    assert alone.config_hash != rows[1].config_hash
    other = replace(rows[1], after=replace(rows[0], threads=2))
    assert other.config_hash != rows[1].config_hash


MISTAKES = [
    ({"rows": [{"name": "a", "after": "b"}, {"name": "b"}]}, "rows.a.after", "a row above it would fit: there is none"),
    ({"rows": [{"name": "a"}, {"name": "b", "after": "c"}]}, "rows.b.after", "a row above it would fit: a"),
    (
        {"rows": [{"name": "a"}, {"name": "b", "after": "a", "set": {"checkpoint.initial_load_path": "x"}}]},
        "rows.b.checkpoint.initial_load_path",
        "after: a decides it",
    ),
    ({"rows": [{"name": "a", "set": {"altup.widht": 2}}]}, "rows.a.altup.widht", "nearest is altup.width"),
    ({"rows": [{"name": "a", "set": {"altup.width": 3}}]}, "rows.a.altup.width", "one of 1, 2, 4, 8"),
    ({"rows": [{"name": "a", "set": {"model.num_query_groups": 3}}]}, "rows.a.model.num_query_groups", "must divide"),
    ({"rows": [{"name": "a", "set": {"train.seed": 3}}]}, "rows.a.train.seed", "seeds decides it"),
    ({"rows": [{"name": "a", "set": {"train.steps": 3}}]}, "rows.a.train.steps", "budget.tokens decides it"),
    (
        {"rows": [{"name": "a", "set": {"parallel.tensor": 2}}]},
        "rows.a.parallel.tensor",
        "must divide the world size (1); ranks: 2 would fit, at the top or in a row's set",
    ),
    ({"rows": [{"name": "a", "set": {"rate": "3mbit"}}]}, "rows.a.rate", "launcher netlab's"),
    ({"rows": [{"name": "a"}, {"name": "b"}]}, "rows.b", "is the same run as rows.a"),
    ({"rows": [{"name": "a"}, {"name": "a"}]}, "rows", "stands twice"),
    ({"rows": [{"name": "a/b"}]}, "rows.0.name", "would fit"),
    ({"rows": [{"nam": "a"}]}, "rows.0.nam", "nearest is rows.0.name"),
    ({"rows": None}, "rows", "one row or more"),
    ({"grid": {"name": "k{altup.wide}", "set": {"altup.width": [2]}}}, "grid.name", "{altup.width} would fit"),
    ({"grid": {"set": {"altup.width": 2}}}, "grid.set.altup.width", "a list of values"),
    ({"seeds": [1, 1]}, "seeds", "twice"),
    ({"seeds": 3}, "seeds", "a list of whole numbers"),
    ({"budget": {"tokens": 5, "seconds": 2.0}}, "budget", "one of the two"),
    ({"budget": {"seconds": 2.0}}, "rows.dense.optim.schedule", "constant or inverse_sqrt would fit"),
    ({"measure": {"train_step": 5}}, "measure.train_step", "nearest is measure.train_steps"),
    ({"measure": {"prefill_tokens": 32}}, "measure.prefill_tokens", "must lie in [1, 31]"),
    ({"sedes": [1]}, "sedes", "nearest is seeds"),
    ({"grid": {"set": {"altup.widht": [2]}}}, "grid.set.altup.widht", "nearest is altup.width"),
]


PLAIN_BASE = {key: value for key, value in BASE.items() if key != "altup"}
SAME = [
    (
        PLAIN_BASE,
        {},
        {"altup.width": 2},
        "is the same run as rows.a: altup.width=2 is the default (1 is the plain Transformer); keep one",
    ),
    (PLAIN_BASE, {"altup.width": 2}, {}, "altup.width=2 is the default (1 is the plain Transformer); keep one"),
    (BASE, {}, {"altup.width": 1}, "is the same run as rows.a: base has altup.width=1; keep one"),
    (BASE, {"ranks": 1}, {}, "is the same run as rows.a: ranks=1 is the study's; keep one"),
    (
        BASE,
        {"log.interval": 5},
        {"moe.num_experts": 0},
        "log.interval changes none of its figures and moe.num_experts=0 is the default; keep one",
    ),
    (BASE, {}, {}, "is the same run as rows.a; keep one"),
]


@pytest.mark.parametrize(("base", "first", "second", "says"), SAME)
def test_the_default_that_makes_two_rows_one_run_is_named(
    tmp_path: Path, base: dict, first: dict, second: dict, says: str
) -> None:
    said = problem(tmp_path, base=base, rows=[{"name": "a", "set": first}, {"name": "b", "set": second}])
    assert said.startswith("rows.b=")
    assert said.endswith(says)


@pytest.mark.parametrize(("keys", "key", "says"), MISTAKES, ids=[key for _, key, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_key(tmp_path: Path, keys: dict, key: str, says: str) -> None:
    said = problem(tmp_path, **keys)
    assert said.startswith(f"{key}=")
    assert says in said
