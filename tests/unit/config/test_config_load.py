"""Files: strict keys and types, and what is saved reads back equal."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altup_moe.config import ConfigError, LogConfig, RunConfig, UserError
from altup_moe.config.load import HINTS, load_config, save_config


def written(directory: Path, text: str) -> Path:
    path = directory / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def values_of(hint: object) -> st.SearchStrategy:
    """Any value of the type; a float is finite, since NaN equals nothing."""
    finite = st.floats(allow_nan=False, allow_infinity=False)
    # No key may hold a NUL: no path and no name can.
    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
    known: dict[Any, st.SearchStrategy[Any]] = {float: finite, float | None: st.none() | finite}
    known |= {str: text, str | None: st.none() | text, tuple[str, ...]: st.lists(text).map(tuple)}
    return known[hint] if hint in known else st.from_type(hint)


def run_configs() -> st.SearchStrategy[RunConfig]:
    sections = {
        name: st.builds(cls, **{key: values_of(hint) for key, hint in typing.get_type_hints(cls).items()})
        for name, cls in typing.get_type_hints(RunConfig).items()
    }
    return st.builds(RunConfig, **sections)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=run_configs())
def test_saved_config_loads_equal(tmp_path: Path, config: RunConfig) -> None:
    save_config(config, tmp_path / "deep" / "config.yaml")
    assert load_config(tmp_path / "deep" / "config.yaml") == config


def test_save_replaces_whole_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    save_config(RunConfig(), path)
    before = path.read_text()

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full_disk)
    changed = dataclasses.replace(RunConfig(), train=dataclasses.replace(RunConfig().train, steps=7))
    with pytest.raises(OSError, match="no space"):
        save_config(changed, path)
    assert path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_defaults_then_file_then_flags(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {steps: 7, seed: 3}\noptim:\n  learning_rate: 1e-4\nmoe:\n")
    config = load_config(path, ["--train.seed", "5"])
    assert (config.train.steps, config.train.seed, config.optim.learning_rate) == (7, 5, 1e-4)
    assert config.moe == RunConfig().moe
    assert load_config(None) == load_config(written(tmp_path, "# nothing\n")) == RunConfig()


@pytest.mark.parametrize("text", ["\x85", "\u2028a", " é ", "1e-3", "null", "~", "yes", "a: b", "#", "\n", "\\"])
def test_text_survives_yaml(tmp_path: Path, text: str) -> None:
    config = dataclasses.replace(RunConfig(), log=LogConfig(run_dir=text, wandb_project=text))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_lists_of_text(tmp_path: Path) -> None:
    """As a list, as a mapping, and as flags; a saved configuration and JSON give lists."""
    expected = ("cb=2", "python-docs=0.5")
    for text in ("[cb=2, python-docs=0.5]", "{cb: 2, python-docs: 0.5}"):
        config = load_config(written(tmp_path, f"data: {{mixture: {text}}}"))
        assert config.data.mixture == expected
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(None, ["--data.mixture", *expected, "--train.steps", "3"]).data.mixture == expected
    assert load_config(None, ["--data.mixture", "cb"]).data.mixture == ("cb",)


def test_whole_numbers_become_floats(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, "optim: {clip_grad: 2}\nmoe: {capacity_factor: 1.25}"))
    assert isinstance(config.optim.clip_grad, float)
    assert config.moe.capacity_factor == 1.25


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("parallel: {expart: 2}", "parallel.expart", "nearest is parallel.expert"),
        ("paralel: {expert: 2}", "paralel.expert", "nearest is parallel.expert"),
        ("model: {num_experts: 8}", "model.num_experts", "nearest is moe.num_experts"),
        ("learning_rate: 0.1", "learning_rate", "nearest is optim.learning_rate"),
        ("expert_model_parallel_size: 2", "expert_model_parallel_size", "nearest is parallel.expert"),
        ("model.num_layers: 2", "model.num_layers", "inside the section model"),
        ("model: 3", "model", "is a section"),
        ("model: {num_layers: two}", "model.num_layers", "a whole number"),
        ("model: {num_layers: 2.0}", "model.num_layers", "a whole number"),
        ("model: {num_layers: true}", "model.num_layers", "a whole number"),
        ("model: {num_layers: null}", "model.num_layers", "a whole number"),
        ("model: {num_layers: {a: 1}}", "model.num_layers", "a whole number"),
        ("optim: {learning_rate: fast}", "optim.learning_rate", "a number"),
        ("altup: {recycled: 1}", "altup.recycled", "true or false"),
        ("altup: {width: 3}", "altup.width", "one of 1, 2, 4, 8"),
        ("altup: {width: true}", "altup.width", "one of 1, 2, 4, 8"),
        ("altup: {variant: gema}", "altup.variant", "altup, gemma, round_robin, hc, dynamic, wide_residual, "),
        ("data: {mixture: cb}", "data.mixture", "one or more, each text"),
        ("data: {mixture: [1]}", "data.mixture", "one or more, each text"),
        ("log: {run_dir: 2024}", "log.run_dir", "text"),
        ("parallel: {data: many}", "parallel.data", "a whole number or null"),
        ("train: {steps: 1, steps: 2}", "train.steps", "twice"),
        ("train:\n  steps: 1\ntrain:\n  seed: 2\n", "train", "lines 1 and 3"),
    ],
)
def test_a_wrong_key_or_type_is_named(tmp_path: Path, text: str, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}=")
    assert says in caught.value.fits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model:\n  num_layers: [1\ntrain: {}\n", "line 3"),
        ("a: 1\n  b: 2\n", "line 2"),
        ("- model\n", "mapping of sections"),
        ("model: !!python/object/apply:os.system ['true']\n", "line 1"),
        ("model: {num_layers: 2001-99-99}\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=r"run\.yaml") as caught:
        load_config(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"log: {run_dir: \xe9}")
    with pytest.raises(UserError, match=r"latin\.yaml"):
        load_config(tmp_path / "latin.yaml")


def test_every_field_is_documented() -> None:
    import inspect

    from altup_moe.config import model_schema, schema

    source = inspect.getsource(model_schema) + inspect.getsource(schema)
    for key in HINTS:
        name = key.partition(".")[2]
        after = source.split(f"\n    {name}: ", 1)[1].split("\n", 2)[1]
        assert after.strip().startswith('"""'), f"{key} has no docstring"
