"""Every shipped configuration parses and fits the world size that its first line names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from altup_moe.config.checks import check_config
from altup_moe.config.load import load_config
from altup_moe.recipe.recipe import is_recipe, load_recipe

FOLDER = Path(__file__).parents[3] / "configs"
CONFIGS = sorted([*FOLDER.glob("*.yaml"), *(FOLDER / "streams").glob("*.yaml")])
RECIPES = [path for path in CONFIGS if is_recipe(path)]
RUNS = [path for path in CONFIGS if path not in RECIPES]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_parses_and_fits(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    world = re.fullmatch(r"# world size: (\d+)", first)
    assert world, f"the first line must be '# world size: N', not {first!r}"
    if path in RECIPES:
        assert world[1] == "1"
        load_recipe(path)  # checks every run of it
    else:
        check_config(load_config(path), int(world[1]))


def test_the_promised_ones_are_there_with_run_directories_of_their_own() -> None:
    assert {"quickstart", "dense", "altup_k4_gpu", "wide_tables"} <= {path.stem for path in CONFIGS}
    assert "paper_tiny" in {path.stem for path in RECIPES}
    run_dirs = [load_config(path).log.run_dir for path in RUNS] + [str(load_recipe(path).run_dir) for path in RECIPES]
    assert run_dirs == [f"runs/{path.stem}" for path in RUNS + RECIPES]
