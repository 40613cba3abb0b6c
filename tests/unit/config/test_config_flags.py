"""Command-line options: every spelling, and errors that name the option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altup_moe.config import ConfigError, OptimConfig, RunConfig, UserError
from altup_moe.config.flags import parse
from altup_moe.config.load import load_config


@pytest.mark.parametrize(
    "words",
    [
        ["--model.num-layers", "3"],
        ["--model.num_layers", "3"],
        ["--model.num-layers=3"],
        ["--model.num_layers=3"],
        ["--model.num-layers", "2", "--model.num_layers=3"],
    ],
)
def test_spellings_of_a_number(words: list[str]) -> None:
    assert load_config(None, words).model.num_layers == 3


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--altup.recycled", "false"], False),
        (["--altup.recycled=False"], False),
        (["--altup.recycled", "no"], False),
        (["--altup.no-recycled"], False),
        (["--altup.no_recycled"], False),
        (["--altup.no-recycled", "--altup.recycled"], True),
        (["--altup.recycled", "--train.steps", "3"], True),
        (["--altup.no-recycled", "--altup.recycled", "true"], True),
    ],
)
def test_spellings_of_a_boolean(words: list[str], value: bool) -> None:
    assert load_config(None, words).altup.recycled is value


@pytest.mark.parametrize("nothing", ["None", "none", "null"])
def test_none(tmp_path: Path, nothing: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: {tokenizer: somewhere}\nparallel: {data: 4}\n")
    config = load_config(file, ["--data.tokenizer", nothing, f"--parallel.data={nothing}"])
    assert config.data.tokenizer is None
    assert config.parallel.data is None


@settings(max_examples=15)
@given(
    recycled=st.booleans(),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    seed=st.integers(),
    run_dir=st.text(st.characters(codec="utf-8", exclude_characters="\0")),
)
def test_values_arrive_as_given(recycled: bool, rate: float, seed: int, run_dir: str) -> None:
    words = [f"--optim.learning-rate={rate!r}", f"--train.seed={seed}", f"--log.run-dir={run_dir}"]
    config = load_config(None, [*words, "--altup.recycled", str(recycled)])
    assert (config.optim.learning_rate, config.train.seed) == (rate, seed)
    assert (config.log.run_dir, config.altup.recycled) == (run_dir, recycled)


def test_a_negative_number_after_a_space() -> None:
    assert load_config(None, ["--optim.weight-decay", "-1e-3"]).optim == OptimConfig(weight_decay=-1e-3)


@pytest.mark.parametrize(
    ("words", "key", "says"),
    [
        (["--parallel.expart", "2"], "parallel.expart", "nearest is parallel.expert"),
        (["--parallel.expart"], "parallel.expart", "nearest is parallel.expert"),
        (["--tensor-model-parallel-size", "2"], "tensor_model_parallel_size", "nearest is parallel.tensor"),
        (["--altup.no-width"], "altup.no_width", "unknown key"),
        (["--altup.no-recycled=1"], "altup.no_recycled", "unknown key"),
        (["--train.steps", "two"], "train.steps", "a whole number"),
        (["--train.steps", "1.5"], "train.steps", "a whole number"),
        (["--train.steps", "5", "--train.seed", "x"], "train.seed", "a whole number"),
        (["--train.steps"], "train.steps", "needs a value"),
        (["--train.steps", "--train.seed", "1"], "train.steps", "needs a value"),
        (["--altup.width", "3"], "altup.width", "one of 1, 2, 4, 8"),
        (["--altup.recycled", "maybe"], "altup.recycled", "true or false"),
        (["--parallel.data", "x"], "parallel.data", "a whole number or null"),
    ],
)
def test_a_wrong_option_is_named(capfd: pytest.CaptureFixture[str], words: list[str], key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words)
    assert caught.value.key == key
    assert says in caught.value.fits
    assert capfd.readouterr() == ("", ""), "something was printed"


@pytest.mark.parametrize(
    ("words", "says"),
    [(["train.steps=3"], "--train.steps VALUE"), (["-s", "3"], "unknown option"), (["3"], "unexpected")],
)
def test_a_stray_word(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_config(None, words)


@dataclass(frozen=True)
class Options:
    place: Path
    name: str
    sizes: tuple[int, ...] = (1,)
    quiet: bool = False


@pytest.mark.parametrize(
    "words",
    [
        ["here", "--name", "a b", "--sizes", "1", "2", "--quiet"],
        ["--name=a b", "--quiet", "here", "--sizes", "1", "2"],
        ["--sizes", "1", "2", "--quiet", "true", "here", "--name", "a b"],
    ],
)
def test_positional_and_several_values(words: list[str]) -> None:
    assert parse(Options, words, positional="place") == Options(Path("here"), "a b", (1, 2), True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["here"], "--name is missing"),
        (["--name", "a"], "PLACE is missing"),
        (["here", "there", "--name", "a"], "'there': unexpected"),
        (["", "--name", "a"], "PLACE='': expects a path"),
        (["here", "--name", "a", "--sizes", "1", "x"], r"sizes='1 x': expects one or more, each a whole number"),
    ],
)
def test_what_a_command_lacks_or_has_too_much(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse(Options, words, positional="place")


def test_no_overrides_is_the_default() -> None:
    assert load_config(None, []) == RunConfig()
