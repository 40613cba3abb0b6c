"""What is given where a run is expected: one line that says what it is, and ends with a command that was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.expected_run import check_initial_load, check_run, check_source
from altup_moe.config.schema import CheckpointConfig, LogConfig


def make_run(directory: Path, step: int | None = 3) -> Path:
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(f"log: {{run_dir: {directory}}}\n")
    if step is not None:
        checkpoint = directory / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").touch()
    return directory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one of each kind."""
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/tiny"))
    make_run(Path("runs/begun"), None)
    Path("study/rows").mkdir(parents=True)
    for row, step in (("a-s1", None), ("b-s1", 2)):
        make_run(Path("study/rows") / row / "run", step)
        (Path("study/rows") / row / "config.yaml").touch()
    Path("empty_study/rows").mkdir(parents=True)
    Path("tiny.yaml").write_text("log: {run_dir: runs/tiny}\n")
    Path("new.yaml").write_text("log: {run_dir: runs/none}\n")
    Path("model").mkdir()
    Path("model/config.json").touch()
    for name, kind in (("exported", "altup_moe"), ("tyny", "altup_moe_t5")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(f'{{"model_type": "{kind}"}}')
    Path("copied").mkdir()
    Path("copied/manifest.json").touch()
    Path("notes.txt").touch()
    Path("nothing").mkdir()
    return tmp_path


MISTAKEN = {
    "runs/tiny/config.yaml": ("lies in the run runs/tiny", "altup-moe evaluate runs/tiny"),
    "runs/tiny/checkpoints/step_00000003": ("lies in the run runs/tiny", "altup-moe evaluate runs/tiny"),
    "runs/tiny/checkpoints": ("lies in the run runs/tiny", "altup-moe evaluate runs/tiny"),
    "runs/tinny": ("there is no such directory", "altup-moe evaluate runs/tiny"),
    "tiny": ("there is no such directory", "altup-moe evaluate runs/tiny"),
    "elsewhere": ("there is no such directory", "altup-moe train quickstart --log.run_dir RUN to make one"),
    "runs/begun": ("has no checkpoint yet", "altup-moe train runs/begun/config.yaml"),
    "runs": ("holds runs (begun, tiny)", "altup-moe evaluate runs/tiny"),
    "study": ("is a study, whose rows are runs", "altup-moe evaluate study/rows/b-s1/run"),
    "study/rows/b-s1": ("is a row of a study", "altup-moe evaluate study/rows/b-s1/run"),
    "empty_study": ("is a study without a row that has begun", "altup-moe study status empty_study"),
    "tiny.yaml": ("is a configuration; its run is runs/tiny", "altup-moe evaluate runs/tiny"),
    "new.yaml": ("is a configuration that no run was made with yet", "altup-moe train new.yaml"),
    "model": ("is a Hugging Face model", "altup-moe convert import model RUN"),
    "exported": ("is an export of a run, for transformers", "altup-moe evaluate RUN"),
    "tyny": ("is an export of a run, for transformers", "altup-moe evaluate runs/tiny"),
    "copied": ("is a checkpoint without its run", "altup-moe inspect copied"),
    "notes.txt": ("is a file", "altup-moe train quickstart --log.run_dir RUN to make one"),
    "nothing": ("holds no config.yaml", "altup-moe train quickstart --log.run_dir RUN to make one"),
}


@pytest.mark.parametrize(("given", "what", "follows"), [(given, *said) for given, said in MISTAKEN.items()])
def test_what_it_is_and_what_to_type(here: Path, given: str, what: str, follows: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(Path(given), "evaluate")
    said = str(caught.value)
    assert said.startswith(f"run_dir='{given}': {what}")
    assert said.endswith(f"; type {follows}")


def test_what_is_right_passes(here: Path) -> None:
    check_run(Path("runs/tiny"), "evaluate")
    for path in ("runs/tiny", "runs/tiny/checkpoints/step_00000003", "copied"):
        check_source(Path(path), "inspect")


COMMANDS = [
    (["evaluate", "runs/tiny/config.yaml"], "altup-moe evaluate runs/tiny"),
    (
        ["generate", "runs/tiny/checkpoints", "--prompt", "Once upon"],
        "altup-moe generate runs/tiny --prompt 'Once upon'",
    ),
    (["inspect", "tiny.yaml"], "altup-moe inspect runs/tiny"),
    (["inspect", "runs/tiny", "--diff", "study"], "altup-moe inspect study/rows/b-s1/run"),
    (["reshard", "runs/tiny/config.yaml", "other"], "altup-moe reshard runs/tiny other"),
    (["grow", "tiny.yaml", "other"], "altup-moe grow runs/tiny other"),
    (["convert", "export", "runs", "model"], "altup-moe convert export runs/tiny model"),
    (["evaluate", "runs/begun"], "altup-moe train runs/begun/config.yaml"),
]


@pytest.mark.parametrize(("words", "follows"), COMMANDS, ids=[shlex.join(words) for words, _ in COMMANDS])
def test_every_command_that_takes_a_run(
    here: Path, capfd: pytest.CaptureFixture[str], words: list[str], follows: str
) -> None:
    (here / "model/config.json").unlink()
    assert main(words) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith(f"; type {follows}\n")


INITIAL = {
    "runs/tinny": "there is no such directory; type altup-moe train new.yaml --checkpoint.initial_load_path runs/tiny",
    "exported": "is an export of a run, for transformers; the run that it came from would fit; "
    "type altup-moe train new.yaml --checkpoint.initial_load_path RUN",
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("given", INITIAL)
def test_weights_from_where_none_are(here: Path, capfd: pytest.CaptureFixture[str], given: str, dry: bool) -> None:
    words = ["train", "new.yaml", "--checkpoint.initial_load_path", given, *["--dry-run"] * dry]
    assert main(words) == 2
    assert f"checkpoint.initial_load_path={given!r}: {INITIAL[given]}" in capfd.readouterr().err


def test_a_run_with_weights_of_its_own_needs_no_others(here: Path) -> None:
    config = RunConfig(log=LogConfig(run_dir="runs/tiny"), checkpoint=CheckpointConfig(initial_load_path="gone"))
    check_initial_load(config, "tiny.yaml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["convert", "runs/tiny", "out"], "type altup-moe convert export runs/tiny out"),
        (["convert", "model", "out"], "type altup-moe convert import model out"),
        (["train", "exported"], "it is an export of a run, for transformers; the run that it came from would fit"),
        (["train", "model"], "type altup-moe convert import model RUN"),
        (["convert", "export", "runs/tiny", "nothing/.."], "exists and is not empty; name another directory"),
    ],
)
def test_directories_of_another_kind(
    here: Path, capfd: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert main(words) == 2
    assert says in capfd.readouterr().err
