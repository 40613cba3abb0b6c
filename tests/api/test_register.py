"""Rows of one's own: known to configurations at once, refused where they are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from altup_moe import api
from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.variants import VARIANTS
from altup_moe.cli import main
from altup_moe.config.architectures import ARCHITECTURES, objective_names
from altup_moe.config.load import HINTS
from altup_moe.config.model_schema import BACKEND_NAMES
from altup_moe.config.plugins import VARIABLE
from altup_moe.data.recipes import OBJECTIVES, recipe_of
from altup_moe.moe.backends import BACKENDS, find_backend
from tests.api.tables import tables_kept


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with tables_kept():
        yield


def nothing(*args: Any) -> Any:
    raise AssertionError


def texts() -> list[str]:
    return ["one text", "another"]


class Layer:
    """No layer at all."""


KINDS: dict[str, tuple[str, Callable[..., None], tuple[Any, ...], str]] = {
    "variant": ("altup.variant", api.register_variant, ({"gate": Coefficient(("K",), "ones")}, nothing), "altup"),
    "backend": ("moe.backend", api.register_backend, (Layer,), "megatron"),
    "objective": ("data.objective", api.register_objective, (nothing,), "causal"),
    "corpus": ("data.corpus", api.register_corpus, (texts,), "python-docs"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_is_known_once_it_is_registered(kind: str) -> None:
    key, register, row, shipped = KINDS[kind]
    given = {key: "mine", "moe.num_experts": 4}
    with pytest.raises(api.ConfigError, match=f"^{key}='mine': "):
        api.check_config(api.load_config(None, given), 1)
    register("mine", *row)
    for overrides in (given, [f"--{key}", "mine", "--moe.num_experts", "4"]):
        config = api.load_config(None, overrides)
        api.check_config(config, 1)
        assert config.to_dict()[key.partition(".")[0]][key.partition(".")[2]] == "mine"
    assert api.load_config(config.to_dict()) == config
    with pytest.raises(api.ConfigError, match=f"^{key}='min': .*mine"):
        api.check_config(api.load_config(None, {key: "min"}), 1)

    with pytest.raises(api.ConfigError, match="is taken; overwrite=True replaces it"):
        register("mine", *row)
    register("mine", *row, overwrite=True)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(api.ConfigError, match=f"^{key}='{shipped}': is taken; a name that is none of "):
            register(shipped, *row, **options)
    for name in ("Mine", "", "a b", "../x", "1st"):
        with pytest.raises(api.ConfigError, match="all lower case, would fit"):
            register(name, *row)


@pytest.mark.parametrize(
    ("register", "row", "says"),
    [
        (api.register_variant, ({"gate": 1.0}, nothing), r"coefficients\['gate'\] is 1.0"),
        (api.register_variant, ({}, "module:name"), "weights is 'module:name'"),
        (api.register_backend, ("module:Class",), "layer is 'module:Class'"),
        (api.register_objective, (None,), "recipe is None"),
        (api.register_corpus, (["a text"],), r"documents is \['a text'\]"),
    ],
)
def test_what_is_no_row_is_refused(register: Callable[..., None], row: tuple[Any, ...], says: str) -> None:
    before = (dict(VARIANTS), dict(BACKENDS), dict(OBJECTIVES))
    with pytest.raises(TypeError, match=says):
        register("mine", *row)
    assert (dict(VARIANTS), dict(BACKENDS), dict(OBJECTIVES)) == before


def test_architectures() -> None:
    api.register_variant("mine", {}, nothing, architectures=["gpt"])
    api.register_objective("mine", nothing, architectures=["t5"])
    t5 = {"model.arch": "t5", "model.num_query_groups": 8}
    with pytest.raises(api.ConfigError, match=r"altup\.variant='mine': model.arch t5 does not carry it"):
        api.check_config(api.load_config(None, {**t5, "altup.variant": "mine"}), 1)
    api.check_config(api.load_config(None, {**t5, "data.objective": "mine"}), 1)
    with pytest.raises(api.ConfigError, match=r"data\.objective='mine'"):
        api.check_config(api.load_config(None, {"data.objective": "mine"}), 1)
    for register, row in ((api.register_variant, ({}, nothing)), (api.register_objective, (nothing,))):
        with pytest.raises(api.ConfigError, match=r"model\.arch='gtp': gpt, t5 would fit"):
            register("other", *row, architectures=["gtp"])
    with pytest.raises(api.ConfigError, match="is the name of a task"):
        api.register_corpus("squad", texts)


def test_rows_are_used() -> None:
    asked = []
    api.register_objective("mine", lambda *given: asked.append(given))  # type: ignore[arg-type, return-value]
    config = api.load_config(None, {"data.objective": "mine"})
    recipe_of(config.model, config.data, "tokenizer")  # type: ignore[arg-type]
    assert asked == [(config.model, config.data, "tokenizer")]
    api.register_backend("mine", Layer, stacked=False, allows_overlap=False)
    row = find_backend("mine")
    assert (row.load(), row.stacked, row.allows_overlap) == (Layer, False, False)


def test_a_corpus_is_other_data_when_its_texts_are() -> None:
    from altup_moe.data.corpora import CORPORA, load_corpus

    changing = ["one"]
    api.register_corpus("mine", lambda: changing)
    before = CORPORA["mine"].fingerprint()
    assert [document.text for document in load_corpus("mine", "unused")] == ["one"]
    changing.append("two")
    assert CORPORA["mine"].fingerprint() != before


PLUGIN = """
from altup_moe import api
api.register_variant("mine", {"gate": api.Coefficient(("K",), "ones")}, lambda block, c: None)
api.register_corpus("texts", lambda: ["one", "two"])
count = api.load_config(None, {"altup.variant": "mine"})
"""


def test_commands_take_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Once a process, from a file or a module, before the configuration is read."""
    (tmp_path / "rows.py").write_text(PLUGIN)
    (tmp_path / "rows_module.py").write_text("from altup_moe import api\napi.register_corpus('more', list)\n")
    (tmp_path / "run.yaml").write_text("altup: {variant: mine}\ndata: {corpus: texts}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    taken = []
    monkeypatch.setattr("altup_moe.train.loop.train", lambda config, *rest: taken.append(config) or 0)
    monkeypatch.delenv(VARIABLE, raising=False)
    assert main(["train", "run.yaml"]) == 2
    assert "altup.variant='mine': expects one of altup, " in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/rows.py, rows_module")
    assert main(["train", "run.yaml"]) == 0
    assert main(["train", "run.yaml", "--data.corpus", "more"]) == 0
    assert [(config.altup.variant, config.data.corpus) for config in taken] == [("mine", "texts"), ("mine", "more")]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere.py", r"='nowhere\.py': there is no such file below .*; a whole path would fit"),
        ("nowhere_at_all", r"='nowhere_at_all': no module has this name; the path of a \.py file would fit"),
        ("broken.py", r"='broken\.py': fails: ZeroDivisionError: "),
        ("missing.py", r"='missing\.py': fails: ModuleNotFoundError: No module named 'nowhere_else'"),
    ],
)
def test_a_plugin_that_is_wrong_is_named(
    named: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "missing.py").write_text("import nowhere_else\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, named)
    assert main(["train", "quickstart"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(f"error: {VARIABLE}{says}", line)


def test_shipped_names_are_the_tables() -> None:
    assert tuple(BACKENDS) == tuple(sorted(BACKEND_NAMES, key=list(BACKENDS).index))
    assert set(objective_names()) == set(OBJECTIVES)
    assert HINTS["moe.backend"].__args__ == ("megatron", "deepspeed", "tutel", "torch")
    assert {name for row in ARCHITECTURES.values() for name in row.objectives} == set(OBJECTIVES)
