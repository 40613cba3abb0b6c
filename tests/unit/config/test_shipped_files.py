"""Shipped files are found by name; what exists wins; a wrong name is one line with the nearest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from altup_moe.config import ConfigError, UserError, shipped
from altup_moe.config.load import load_config
from altup_moe.config.shipped import CONFIGS, find_file, shipped_files
from altup_moe.plan.cluster import load_cluster
from altup_moe.recipe.recipe import load_recipe
from altup_moe.study.read_study import load_study

FILES = shipped_files()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_is_listed_once_with_its_kind() -> None:
    assert {file.path for file in FILES} == {p for p in CONFIGS.rglob("*.yaml") if "results" not in p.parts}
    assert len({file.name for file in FILES}) == len(FILES)
    kinds = {file.name: file.kind for file in FILES}
    wanted = {
        "quickstart": "configuration",
        "paper_tiny": "recipe",
        "paper_small": "study",
        "quick_pareto": "study",
        "h100x8": "cluster",
    }
    assert wanted.items() <= kinds.items()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_summary_is_one_line_that_fits_a_terminal(file: shipped.ShippedFile) -> None:
    assert 20 <= len(file.summary) <= 120
    assert not file.summary.startswith(("world size", "altup-moe"))


def test_a_bare_name_is_the_shipped_file() -> None:
    assert load_config("quickstart") == load_config(CONFIGS / "quickstart.yaml")
    assert load_config("quickstart.yaml", ["--train.steps", "3"]).train.steps == 3
    assert load_study("paper_small").name == "paper_small"
    assert load_recipe("paper_tiny").seeds == (1, 2, 3)
    assert load_cluster("h100x8").gpus_per_node == 8


def test_a_file_that_exists_wins_and_a_folder_does_not(tmp_path: Path) -> None:
    Path("dense").mkdir()
    assert find_file("dense", "configuration") == CONFIGS / "dense.yaml"
    Path("quickstart").write_text("train: {steps: 7}")
    assert load_config("quickstart").train.steps == 7
    # With its ending it is another path.
    assert load_config("quickstart.yaml").train.steps == load_config(CONFIGS / "quickstart.yaml").train.steps
    shutil.copy(CONFIGS / "clusters" / "h100x8.yaml", "mine.yaml")
    assert load_cluster("mine.yaml").name == "mine"


WRONG = [
    ("quikstart", "configuration", "No such file or directory; the nearest shipped configuration is quickstart "),
    ("configs/quickstart.yml", "configuration", "No such file or directory; the nearest .* is quickstart "),
    ("paper_smal", "study", "No such file or directory; the nearest shipped study is paper_small "),
    ("paper_small", "configuration", "is a shipped study; the command for it is altup-moe study run paper_small"),
    ("paper_tiny", "configuration", "is a shipped recipe; the command for it is altup-moe recipe paper_tiny"),
    ("quickstart", "study", "is a shipped configuration; the command for it is altup-moe train quickstart"),
    ("some", "configuration", "Is a directory, where a file is expected$"),
    ("runs/x", "configuration", r"Is a directory, .*; its configuration, runs/x/config\.yaml, would fit"),
]


@pytest.mark.parametrize(("given", "kind", "says"), WRONG)
def test_a_wrong_name_is_one_line(given: str, kind: shipped.Kind, says: str) -> None:
    Path("some").mkdir()
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/config.yaml").touch()
    with pytest.raises(UserError, match=f"^{given}: {says}") as error:
        find_file(given, kind)
    assert "\n" not in str(error.value)


def test_a_wrong_cluster_names_its_option_and_what_writes_one() -> None:
    with pytest.raises(ConfigError, match=r"^cluster='h100': .* nearest shipped cluster is h100x8 .*plan measure"):
        load_cluster("h100")


def test_a_study_may_stand_on_a_shipped_configuration() -> None:
    text = "base: BASE\nseeds: [1]\nbudget: {tokens: 4096}\nrows: [{name: one, set: {parallel.expert: 1}}]\n"
    Path("mine.yaml").write_text(text.replace("BASE", "quickstart"))
    (row,) = load_study("mine.yaml").rows
    assert row.config.model == load_config("quickstart").model
    Path("base.yaml").write_text("model: {num_layers: 3}")
    Path("mine.yaml").write_text(text.replace("BASE", "base.yaml"))
    assert load_study("mine.yaml").rows[0].config.model.num_layers == 3
    Path("mine.yaml").write_text(text.replace("BASE", "quikstart"))
    with pytest.raises(UserError, match="nearest shipped configuration is quickstart"):
        load_study("mine.yaml")


def test_a_similar_file_beside_it_comes_before_shipped_ones(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    for wrong in ("mine.yml", "mien.yaml", "mine"):
        with pytest.raises(UserError, match=r"the nearest file there is .*/mine\.yaml"):
            shipped.find_file(tmp_path / wrong, "configuration")
    with pytest.raises(UserError, match="the nearest shipped configuration is "):
        shipped.find_file(tmp_path / "quikstart", "configuration")
