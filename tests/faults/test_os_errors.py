"""Whatever the file system refuses to any command is one line with the path, and exit code 2. No process group begins.

Commands are called in this process. As root, permissions refuse nothing: read-only and full disks are mounts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe import cli
from altup_moe.config import LogConfig
from altup_moe.config.load import save_config
from altup_moe.config.os_errors import naming, user_line
from tests.checkpoints import head, random_tensors, write_tensors
from tests.distributed.cases import small
from tests.faults.disks import AS_ROOT, fill, mounted

LONG = "n" * 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Paths that nothing can be made of, a text, and a run with a checkpoint."""
    place = tmp_path_factory.mktemp("place")
    (place / "file").write_text("a file\n")
    (place / "empty").mkdir()
    (place / "text.txt").write_text("some text, again and again. " * 2000)
    (place / "dangling").symlink_to(place / "nowhere")
    config = replace(small("one"), log=LogConfig(run_dir=str(place / "run")))
    write_tensors(place / "run", head(config, 2), random_tensors(config))
    save_config(config, place / "run" / "config.yaml")
    with ExitStack() as stack:
        if AS_ROOT:
            stack.enter_context(mounted(place / "readonly", 1 << 20, read_only=True))
            full = stack.enter_context(mounted(place / "full", 1 << 20))
            fill(full / "filler")
        yield place


TRAIN = ["train", "dense", "--train.steps", "1", "--log.run_dir"]
WRITING: dict[str, Callable[[str, str], list[str]]] = {
    "train": lambda place, path: [*TRAIN, path],
    "train's cache": lambda place, path: [*TRAIN, f"{place}/new", "--data.cache", path],
    "prepare-data": lambda place, path: ["prepare-data", f"{place}/text.txt", f"{path}/t", "--vocab-size", "300"],
    "reshard": lambda place, path: ["reshard", f"{place}/run", f"{path}/out"],
    "grow": lambda place, path: ["grow", f"{place}/run", f"{path}/out", "--altup.width", "4", "--no-check"],
    "show": lambda place, path: ["show", f"{place}/run", "--output", f"{path}/page.html"],
    "configs": lambda place, path: ["configs", "quickstart", f"{path}/mine.yaml"],
    "study": lambda place, path: ["study", "run", "quick_pareto", "--dir", path],
    "recipe": lambda place, path: ["recipe", "paper_tiny", "--run-dir", path],
    "plan measure": lambda place, path: ["plan", "measure", f"{path}/cluster.yaml"],
    "plan": lambda place, path: ["plan", "dense", "--gpus", "1", "--timeline", path],
    "bench": lambda place, path: ["bench", "checkpoint", "--megabytes", "64", "--directory", path],
    "evaluate": lambda place, path: ["evaluate", f"{place}/run", "--tasks", "cb", "--answers", f"{path}/answers"],
}
"""Command -> its words, of the directory with the fixture's files and the path to write to."""
READING: dict[str, Callable[[str, str], list[str]]] = {
    "train": lambda place, path: ["train", path],
    "train's corpus": lambda place, path: [*TRAIN, f"{place}/new", "--data.corpus", path],
    "train's tokenizer": lambda place, path: [*TRAIN, f"{place}/new", "--data.tokenizer", path],
    "train's weights": lambda place, path: [*TRAIN, f"{place}/new", "--checkpoint.initial_load_path", path],
    "evaluate": lambda place, path: ["evaluate", path],
    "evaluate's corpus": lambda place, path: ["evaluate", f"{place}/run", "--corpus", path],
    "generate": lambda place, path: ["generate", path, "--prompt", "a"],
    "show": lambda place, path: ["show", path],
    "inspect": lambda place, path: ["inspect", path],
    "inspect --diff": lambda place, path: ["inspect", f"{place}/run", "--diff", path],
    "reshard": lambda place, path: ["reshard", path, f"{place}/out"],
    "grow": lambda place, path: ["grow", path, f"{place}/out", "--altup.width", "4"],
    "convert export": lambda place, path: ["convert", "export", path, f"{place}/out"],
    "convert import": lambda place, path: ["convert", "import", path, f"{place}/out"],
    "prepare-data": lambda place, path: ["prepare-data", path, f"{place}/out"],
    "prepare-data's tokenizer": lambda place, path: ["prepare-data", f"{place}/text.txt", f"{place}/o",
                                                     "--tokenizer", path],
    "study run": lambda place, path: ["study", "run", path],
    "study status": lambda place, path: ["study", "status", path],
    "study report": lambda place, path: ["study", "report", path],
    "recipe": lambda place, path: ["recipe", path],
    "plan": lambda place, path: ["plan", path],
    "plan's cluster": lambda place, path: ["plan", "dense", "--cluster", path],
    "plan compare": lambda place, path: ["plan", "compare", path],
    "launch": lambda place, path: ["launch", "deepspeed", "--hostfile", path, "--dry-run", "--", "true"],
    "configs": lambda place, path: ["configs", path],
}  # fmt: skip
NOT_TO_WRITE = {
    "a file in the way": "file/sub",
    "a link to nothing": "dangling/sub",
    "a name too long": LONG,
    "a NUL": "a\0b",
    **({"a read-only disk": "readonly/sub", "a full disk": "full/sub"} if AS_ROOT else {}),
}
NOT_TO_READ = {
    "a file in the way": "file/sub",
    "a link to nothing": "dangling",
    "a name too long": LONG,
    "a NUL": "a\0b",
    "nothing": "missing",
    "an empty directory": "empty",
}
LEFT_OUT = {("bench", "a full disk"), ("evaluate", "a full disk"), ("study status", "an empty directory")}
"""The first two work for long before they write; the last says that nothing is there yet, and exits with 0."""


def _cells(commands: dict, causes: dict) -> list:
    return [(c, why) for c in commands for why in causes if (c, why) not in LEFT_OUT]


def _one_line(words: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if "Warning" not in line and "warnings.warn" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("altup-moe: error: ")
    assert "Traceback" not in out.err
    named = "NUL" if "\0" in path else Path(path).name if "/sub" not in path else Path(path).parent.name
    assert named in lines[0]


@pytest.fixture(autouse=True)
def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a command makes by the way may land in the sources."""
    monkeypatch.chdir(place)


@pytest.mark.parametrize(("command", "cause"), _cells(WRITING, NOT_TO_WRITE))
def test_what_cannot_be_written(command: str, cause: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(place / NOT_TO_WRITE[cause])
    _one_line(WRITING[command](str(place), path), path, capsys)


@pytest.mark.parametrize(("command", "cause"), _cells(READING, NOT_TO_READ))
def test_what_cannot_be_read(command: str, cause: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(place / NOT_TO_READ[cause])
    _one_line(READING[command](str(place), path), path, capsys)


FILES = ("config.yaml", "metrics.jsonl", "metrics.removed.jsonl", "routing.jsonl", "samples.jsonl", "starts.jsonl")
DIRECTORIES = ("checkpoints", "tensorboard", "tokenizer", "profile")


@pytest.mark.parametrize("name", [*FILES, *DIRECTORIES])
@pytest.mark.parametrize("link", [False, True])
def test_something_else_where_a_run_writes(
    name: str, link: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A directory where a file shall be, a file where a directory shall be, a link to nothing for either."""
    tmp_path.joinpath("run").mkdir()
    there = tmp_path / "run" / name
    if link:
        there.symlink_to(tmp_path / "nowhere")
    elif name in FILES:
        there.mkdir()
    else:
        there.write_text("in the way")
    assert cli.main([*TRAIN, str(tmp_path / "run"), "--log.profile_steps", "2"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    why = "is a link to" if link else "Is a directory" if name in FILES else "is a file; a directory would fit"
    assert f"{there}: {why}" in line
    assert not list((tmp_path / "run").glob("data*"))
    assert not list((tmp_path / "run").glob(".preflight*"))


@pytest.mark.skipif(not AS_ROOT, reason="a disk of its own needs root")
def test_no_room_for_one_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk can be written, and holds no checkpoint. With room the data is what is done next."""
    with mounted(tmp_path / "disk", 30 << 20) as disk:
        assert cli.main([*TRAIN, str(disk / "run"), "--model.hidden_size", "768"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{disk}/run: 31.5 MB are free, one checkpoint needs " in line
        assert line.endswith(" MB; make room, or name another log.run_dir")
        assert not (disk / "run" / "data").exists()


@pytest.mark.parametrize("words", [["configs"], ["--help"], ["plan", "published"]])
def test_standard_output_on_a_full_disk(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert cli.main(words) == 2
        monkeypatch.undo()
    assert capsys.readouterr().err == "altup-moe: error: standard output: No space left on device\n"


def test_which_errors_are_a_users() -> None:
    """Not those of networks, processes and programs, nor of a disk that fails for a moment."""
    assert user_line(FileNotFoundError(2, "No such file or directory", "a/b")) == "a/b: No such file or directory"
    assert user_line(OSError(28, "No space left on device")) == "a file cannot be written: No space left on device"
    assert user_line(OSError(28, "No space left on device", "from", None, "to")) == "to: No space left on device"
    refused: list[OSError] = [
        *(ConnectionResetError(104, "reset"), ConnectionRefusedError(111, "refused"), BrokenPipeError(32, "pipe")),
        *(TimeoutError(110, "timed out"), ProcessLookupError(3, "no process"), ChildProcessError(10, "no child")),
        *(OSError(5, "Input/output error", "a"), OSError("no number"), PermissionError(1, "kill")),
        *(OSError(98, "Address already in use"), type("OfALibrary", (OSError,), {})(2, "not found", "a")),
    ]
    assert [user_line(error) for error in refused] == [None] * len(refused)
    with pytest.raises(OSError, match="full") as error, naming("a"):
        raise OSError(28, "full")
    assert os.fspath(error.value.filename) == "a"
