"""A run's own config.yaml after the directory was moved, and a second run from the file of one with weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.commands.run_file import check_run_file, new_weights_note, run_of_file
from altup_moe.config import UserError
from altup_moe.config.load import load_config, save_config
from tests.checkpoints import head, random_tensors, write_tensors
from tests.unit.train.runs import tiny


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefix: Path) -> str:
    """File of runs/moved, whose log.run_dir is still runs/old: it has a checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    config = tiny(log={"run_dir": "runs/old"}, data={"corpus": str(prefix)}, optim={"warmup_steps": 1})
    save_config(config, "runs/old/config.yaml")
    write_tensors("runs/old", head(config, 2), random_tensors(config))
    shutil.move("runs/old", "runs/moved")
    return "runs/moved/config.yaml"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_moved_run_does_not_train_elsewhere(more: list[str], moved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", moved, "--train.steps", "9", *more]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "altup-moe: error: runs/moved/config.yaml: says log.run_dir='runs/old', but lies in runs/moved; "
        "--log.run_dir runs/moved goes on here; to start another run, copy the file elsewhere\n",
    )
    assert not Path("runs/old").exists()


def test_both_ways_on_work(moved: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The dry run of each is what training finds."""
    assert main(["train", moved, "--log.run-dir=runs/moved", "--dry-run"]) == 2  # the checkpoint is of other data
    assert "step_00000002" in capsys.readouterr().err
    shutil.copy(moved, "copy.yaml")
    assert main(["train", "copy.yaml", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "the run starts anew in runs/old; it does not exist yet" in out
    assert "new weights" not in out


def test_a_file_that_lies_in_its_run_is_taken(moved: str) -> None:
    shutil.copytree("runs/moved", "runs/old")
    for file in ("runs/old/config.yaml", "runs/../runs/old/config.yaml", Path("runs/old/config.yaml").absolute()):
        check_run_file(file, load_config(file), [])
    shutil.rmtree("runs/moved/checkpoints")  # nothing was trained: a file that only has this name
    assert run_of_file(moved) is None
    check_run_file(moved, load_config(moved), [])
    Path("runs/moved/metrics.jsonl").touch()
    with pytest.raises(UserError, match="but lies in runs/moved"):
        check_run_file(moved, load_config(moved), [])


def test_a_new_run_from_a_run_s_file_says_that_its_weights_are_new(
    moved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    says = "runs/b: starts from new weights; --checkpoint.initial_load_path runs/moved takes those of runs/moved"
    words = ["train", moved, "--log.run_dir", "runs/b"]
    assert main([*words, "--dry-run"]) == 0
    assert f"the run starts anew in runs/b; it does not exist yet\n{'':15}{says}\n" in capsys.readouterr().out
    there = load_config(moved, words[2:])
    assert new_weights_note(moved, there) == says
    with_weights = load_config(moved, [*words[2:], "--checkpoint.initial_load_path", "runs/moved"])
    assert new_weights_note(moved, with_weights) is None
    assert new_weights_note(moved, load_config(moved, ["--log.run_dir", "runs/moved"])) is None
    write_tensors("runs/b", head(there, 1), random_tensors(there))
    assert new_weights_note(moved, there) is None, "it goes on from its own weights"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_training_says_it_first(
    rank: str, moved: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from altup_moe.train import loop

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(loop, "train", lambda config: print(config.log.run_dir) or 0)
    assert main(["train", moved, "--log.run_dir", "runs/b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "runs/b"
    assert ["starts from new weights" in line for line in lines] == ([True, False] if rank == "0" else [False])
