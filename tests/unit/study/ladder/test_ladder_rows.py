"""A ladder's file becomes rows: sizes by the rule, tokens by parameters, tries first, then runs and their branches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from altup_moe.config import ConfigError
from altup_moe.parallel.counts import count_parameters
from altup_moe.study.ladder.spec import SizeRule
from altup_moe.study.read_study import load_study
from altup_moe.study.spec import Losses, RowSpec, Study
from altup_moe.study.study_directory import StudyDirectory

BASE = {
    "model": {"seq_length": 32, "vocab_size": 320},
    "altup": {"width": 1},
    "moe": {"num_experts": 0},
    "optim": {"learning_rate": 1.0e-3, "min_learning_rate": 1.0e-4, "warmup_steps": 5},
    "train": {"micro_batch_size": 4, "global_batch_size": 16},
}
LADDER: dict[str, Any] = {
    "sizes": [32, 64],
    "tokens_per_parameter": [1, 2, 4],
    "families": [{"name": "dense"}, {"name": "altup-k2", "set": {"altup.width": 2}}],
}
TUNE = {"tune": {"optim.learning_rate": [0.001, 0.002, 0.004]}}


def study(directory: Path, **changes: object) -> Study:
    """The study of a ladder; None leaves a key out."""
    ladder = {key: value for key, value in {**LADDER, **changes}.items() if value is not None}
    file = directory / "ladder.yaml"
    file.write_text(yaml.safe_dump({"base": BASE, "seeds": [1, 2], "ladder": ladder}, sort_keys=False))
    return load_study(file)


def problem(directory: Path, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        study(directory, **changes)
    return str(caught.value)


def grown(of: Study, losses: Losses) -> Study:
    assert of.grow is not None
    return of.grow(losses)


def test_a_size_decides_the_shape() -> None:
    keys = SizeRule(width_per_layer=16, head_size=16, ffn_ratio=8 / 3, expert_ffn_ratio=4 / 3, multiple_of=8).keys(96)
    assert keys == {
        "model.hidden_size": 96,
        "model.num_layers": 6,
        "model.num_attention_heads": 6,
        "model.num_query_groups": 6,
        "model.ffn_hidden_size": 256,
        "moe.ffn_hidden_size": 128,
    }
    assert SizeRule().keys(16)["model.num_layers"] == 2
    with pytest.raises(ConfigError, match=r"ladder\.sizes=40: .* as 32|ladder\.sizes=40: .* as 48"):
        SizeRule().keys(40)


def test_without_tuning_all_rows_are_known_and_branch_off_the_longest(tmp_path: Path) -> None:
    rows = study(tmp_path).rows
    assert len(rows) == 2 * 2 * 3 * 2
    first = rows[:3]
    assert [row.name for row in first] == ["dense-d32-t4", "dense-d32-t1", "dense-d32-t2"]
    longest, *shorter = first
    assert (longest.branch, longest.before) == (None, None)
    counts = count_parameters(longest.config)
    assert longest.budget.tokens == 4 * (counts.active - 320 * 32)
    starts = []
    for row in shorter:
        assert row.branch is not None
        assert row.branch.row is row.before is longest
        steps, decay = row.config.train.steps, row.config.optim.decay_steps
        assert decay == max(1, round(0.2 * steps))
        assert row.branch.step == steps - decay
        starts.append(row.branch.step)
        assert row.config.optim.schedule == "wsd"
    assert longest.config.checkpoint.save_at == tuple(starts)
    # Tokens are those of the first family of that size, whatever the other's parameters.
    others = [row for row in rows if row.family == "altup-k2" and row.seed == 1 and row.config.model.hidden_size == 32]
    assert {row.budget.tokens for row in others} == {row.budget.tokens for row in first}


def test_a_branch_is_the_run_that_it_would_be_alone(tmp_path: Path) -> None:
    """Where a row goes on from is no part of what it is."""
    alone = study(tmp_path, tokens_per_parameter=[1]).rows[0]
    branch = next(row for row in study(tmp_path).rows if row.name == alone.name and row.seed == alone.seed)
    assert branch.branch is not None
    assert branch.config_hash == alone.config_hash


def test_numbers_of_tokens_may_be_the_same_for_all_sizes(tmp_path: Path) -> None:
    rows = study(tmp_path, tokens_per_parameter=None, tokens=[20_000, 1_000_000]).rows
    assert {row.name.rpartition("-t")[2]: row.budget.tokens for row in rows} == {"20000": 20_000, "1000000": 1_000_000}
    assert {row.config.model.hidden_size for row in rows if row.budget.tokens == 20_000} == set(LADDER["sizes"])


def test_a_size_may_have_seeds_of_its_own(tmp_path: Path) -> None:
    rows = study(tmp_path, seeds={64: [7, 5, 9]}, tokens_per_parameter=[1]).rows
    seeds = {size: [row.seed for row in rows if row.config.model.hidden_size == size] for size in (32, 64)}
    assert seeds == {32: [1, 1, 2, 2], 64: [7, 7, 5, 5, 9, 9]}
    # The first seed of every model comes first.
    assert [row.seed for row in rows] == [1, 1, 7, 7, 2, 2, 5, 5, 9, 9]
    tries = study(tmp_path, seeds={64: [7, 5]}, **TUNE).rows
    assert {(row.config.model.hidden_size, row.seed) for row in tries} == {(32, 1), (64, 7)}


def losses_of(best: dict[tuple[str, int], float]) -> Losses:
    """Quadratic in the logarithm of the rate, lowest at one of each family and size."""

    def loss(row: RowSpec) -> float:
        lowest = best[row.family, row.config.model.hidden_size]
        return 3.0 + math.log(row.config.optim.learning_rate / lowest) ** 2

    return loss


def test_rates_are_tuned_first_on_the_fewest_tokens_and_one_seed(tmp_path: Path) -> None:
    first = study(tmp_path, **TUNE)
    assert {row.role for row in first.rows} == {"tuning"}
    assert len(first.rows) == 2 * 2 * 3
    assert {(row.seed, row.budget.tokens, row.config.model.hidden_size) for row in first.rows} == {
        (1, count_parameters(row.config).active - 320 * row.config.model.hidden_size, row.config.model.hidden_size)
        for row in first.rows
        if row.family == "dense"
    }
    assert first.notes()[0] == "4 of 4 models are tuned first; their other rows follow"

    best = {("dense", 32): 2.5e-3, ("dense", 64): 2e-3, ("altup-k2", 32): 7e-3, ("altup-k2", 64): 1.5e-3}
    known = losses_of(best)
    second = grown(first, known)
    # One model's best lies beyond its grid: a further try, while the others go on.
    tries = [row for row in second.rows if row.role == "tuning"]
    assert [row.config.optim.learning_rate for row in tries if row.family == "altup-k2"][:4] == [
        *(0.001, 0.002, 0.004),
        0.008,
    ]
    trained = [row for row in second.rows if row.role == "trained"]
    assert len(trained) == 4 * 3 * 2
    for row in trained:
        lowest = best[row.family, row.config.model.hidden_size]
        assert row.config.optim.learning_rate == pytest.approx(lowest, rel=5e-3)
        assert row.config.optim.min_learning_rate == pytest.approx(row.config.optim.learning_rate / 10, rel=1e-5)
    assert grown(second, known).rows == second.rows
    assert not [note for note in second.notes() if "tuned first" in note]


def test_a_try_that_is_not_trained_holds_only_its_own_model_back(tmp_path: Path) -> None:
    first = study(tmp_path, **TUNE)
    last, known = first.rows[-1], losses_of({(row.family, row.config.model.hidden_size): 2e-3 for row in first.rows})
    more = grown(first, lambda row: None if row.config_hash == last.config_hash else known(row))
    models = {(row.family, row.config.model.hidden_size) for row in more.rows if row.role == "trained"}
    assert models == {("dense", 32), ("altup-k2", 32), ("dense", 64)}
    assert more.notes() == ["1 of 4 models are tuned first; their other rows follow"]


def test_a_model_all_of_whose_tries_failed_has_no_other_rows(tmp_path: Path) -> None:
    first = study(tmp_path, **TUNE)
    known = losses_of({(row.family, row.config.model.hidden_size): 2e-3 for row in first.rows})
    more = grown(first, lambda row: math.inf if row.family == "dense" else known(row))
    assert {row.family for row in more.rows if row.role == "trained"} == {"altup-k2"}


def test_the_directory_reads_what_it_wrote(tmp_path: Path) -> None:
    written, directory = study(tmp_path), StudyDirectory(tmp_path / "study")
    directory.lay_out(written)
    read = directory.study()
    assert [(row.key, row.role) for row in read.rows] == [(row.key, row.role) for row in written.rows]
    branch = read.rows[1].branch
    assert branch is not None
    assert (branch.row, branch.step) == (read.rows[0], written.rows[1].branch.step)  # type: ignore[union-attr]
    config = directory.config(written.rows[1])
    assert config.checkpoint.branch_from is not None
    assert config.checkpoint.branch_from.endswith(f"{read.rows[0].key}/run/checkpoints/step_{branch.step:08d}")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": None}, "ladder.sizes=None: a list of whole numbers would fit"),
        ({"sizes": [64, 32]}, "ladder.sizes=[64, 32]: the same in ascending order, each once, would fit"),
        ({"sizes": [40]}, "ladder.sizes=40: a multiple of ladder.rule.head_size would fit"),
        ({"size": [32]}, "ladder.sizes"),
        ({"rule": {"head_sise": 8}}, "ladder.rule.head_size"),
        ({"rule": {"head_size": 0}}, "ladder.rule.head_size=0: must be at least 1"),
        ({"tokens_per_parameter": [0.0]}, "ladder.tokens_per_parameter=0.0: must be above 0"),
        ({"tokens_per_parameter": [0.01]}, "optim.warmup_steps (5) leave no room"),
        ({"tokens": [9_000]}, "ladder.tokens=[9000]: ladder.tokens_per_parameter stands too; one of the two"),
        ({"tokens_per_parameter": None, "tokens": [0.5]}, "ladder.tokens=[0.5]: a list of whole numbers would fit"),
        ({"tokens_per_parameter": None, "tokens": [64]}, "ladder.tokens=[64]: dense"),
        ({"tokens_per_parameter": None}, "ladder.tokens_per_parameter=None: a list of numbers would fit"),
        ({"seeds": [1]}, "ladder.seeds=[1]: is a section"),
        ({"seeds": {48: [1]}}, "ladder.seeds.48=[1]: no size of the ladder; one of 32, 64 would fit"),
        ({"seeds": {32: 1}}, "ladder.seeds.32=1: a list of whole numbers would fit"),
        ({"seeds": {32: []}}, "ladder.seeds.32=[]: a list of whole numbers would fit"),
        ({"seeds": {64: [1, 1]}}, "ladder.seeds.64=[1, 1]: names one twice"),
        ({"decay": 1.0}, "ladder.decay=1.0: must lie in (0, 1)"),
        ({"families": []}, "a list of families"),
        ({"families": [{"name": "a"}, {"name": "a"}]}, "stands twice"),
        ({"families": [{"name": "a", "set": {"model.num_layers": 3}}]}, "ladder.rule decides it"),
        ({"families": [{"name": "a", "set": {"train.steps": 3}}]}, "ladder decides it"),
        ({"families": [{"name": "a", "set": {"altup.with": 3}}]}, "altup.width"),
        ({"families": [{"name": "a"}, {"name": "b"}]}, "is the same run as"),
        ({"tune": {"optim.learning_rate": [0.1]}}, "three values or more would fit"),
        ({"tune": {"optim.learning_rat": [0.1]}}, "optim.learning_rate"),
        ({"tune": {"model.num_layers": [1, 2, 3]}}, "a key that is a number can be tuned"),
        ({"tune": {}}, "one key with its values would fit"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in problem(tmp_path, **changes)


def test_a_ladder_has_no_budget_and_no_rows_of_its_own(tmp_path: Path) -> None:
    for key, value in (("budget", {"tokens": 5}), ("rows", []), ("grid", {})):
        file = tmp_path / "mixed.yaml"
        file.write_text(yaml.safe_dump({"base": BASE, "seeds": [1], "ladder": LADDER, key: value}))
        with pytest.raises(ConfigError, match=f"{key}=.*a ladder decides its rows"):
            load_study(file)
