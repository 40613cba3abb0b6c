"""What a run refuses in one line, and what is on the disk afterwards: a damaged checkpoint, a directory that cannot be
written, a directory in which another run trains. All through the command, in this process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altup_moe.config.locks import locked_directory
from tests.command import command
from tests.faults.disks import AS_ROOT, mounted

pytestmark = pytest.mark.slow

Saw = Callable[[float, int, str], None]
train = command("train")
SMALL = {
    "model.num_layers": 2,
    "model.hidden_size": 16,
    "model.ffn_hidden_size": 32,
    "model.num_attention_heads": 4,
    "model.seq_length": 32,
    "model.vocab_size": 320,
    "moe.ffn_hidden_size": 32,
    "parallel.expert": 1,
    "train.micro_batch_size": 2,
    "train.global_batch_size": 4,
    "train.eval_interval": 0,
    "train.eval_samples": 4,
    "log.tensorboard": "false",
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with two checkpoints; its tokens lie beside it."""
    directory = tmp_path_factory.mktemp("refused") / "run"
    assert train(words(directory, 4)) == 0
    return directory


def words(run_dir: Path, steps: int) -> list[str]:
    """The training command's words."""
    cache = run_dir.parent / "tokens"
    values = {**SMALL, "train.steps": steps, "checkpoint.save_interval": 2, "data.cache": cache, "log.run_dir": run_dir}
    return ["quickstart", *(word for key, value in values.items() for word in (f"--{key}", str(value)))]


def files(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, but for the lock."""
    found = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def refused(argv: list[str], run_dir: Path, capsys: pytest.CaptureFixture[str], saw: Saw) -> str:
    """The one line of a command that changes nothing in the run's directory."""
    before, _ = files(run_dir), capsys.readouterr()
    began = time.monotonic()
    code = train(argv)
    seconds = time.monotonic() - began
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert files(run_dir) == before
    saw(seconds, code, error)
    return error


@pytest.mark.fault("damaged-checkpoint")
def test_a_flipped_byte_is_named_and_nothing_is_loaded(
    run_dir: Path, capsys: pytest.CaptureFixture[str], saw: Saw
) -> None:
    copy = run_dir.parent / "damaged"
    shutil.copytree(run_dir, copy)
    newest = sorted((copy / "checkpoints").glob("step_*"))[-1]
    (file,) = newest.glob("rank_*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    argv = words(copy, 6)
    error = refused(argv, copy, capsys, saw)
    assert file.name in error
    assert "--checkpoint.fallback true goes back to step_00000002" in error
    assert train([*argv, "--checkpoint.fallback", "true"]) == 0


@pytest.mark.fault("second-run")
def test_a_second_run_in_the_directory_is_refused(run_dir: Path, capsys: pytest.CaptureFixture[str], saw: Saw) -> None:
    with locked_directory(run_dir, "training", "name another log.run_dir"):
        error = refused(words(run_dir, 6), run_dir, capsys, saw)
    assert f"{run_dir}: another training runs here" in error


@pytest.mark.fault("read-only-directory")
@pytest.mark.skipif(not AS_ROOT, reason="a read-only file system needs root")
def test_a_read_only_file_system_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str], saw: Saw) -> None:
    place = run_dir.parent / "read-only"
    with mounted(place, 1 << 20, read_only=True):
        argv = words(run_dir, 6)
        argv[argv.index("--log.run_dir") + 1] = str(place / "run")
        error = refused(argv, place, capsys, saw)
    assert str(place) in error
    assert "Read-only file system" in error


@pytest.mark.fault("read-only-directory")
@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str], saw: Saw) -> None:
    place = run_dir.parent / "not ours"
    place.mkdir(mode=0o500)
    argv = words(run_dir, 6)
    argv[argv.index("--log.run_dir") + 1] = str(place / "run")
    assert "Permission denied" in refused(argv, place, capsys, saw)
