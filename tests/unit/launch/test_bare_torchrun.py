"""Ranks that bare torchrun started say which exit code it hides, and the command line that keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.launch.bare_torchrun import advice
from altup_moe.parallel.death_record import OWN_LAUNCHER

BARE = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1", "RANK": "0"}
WORDS = ["train", "my run.yaml", "--train.steps", "5"]


@pytest.mark.parametrize("code", [2, 75])
def test_the_code_and_the_command_that_keeps_it(code: int) -> None:
    said = advice(code, WORDS, BARE)
    assert said is not None
    assert f"the exit code is {code} (" in said
    follows = "altup-moe launch torchrun --ranks-per-node 2 -- altup-moe train 'my run.yaml' --train.steps 5"
    assert said.endswith(f": {follows}")
    several = {**BARE, "GROUP_WORLD_SIZE": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
    assert "launch torchrun --nodes 3 --rdzv node0:29500 --ranks-per-node 2 -- " in str(advice(code, WORDS, several))


def test_where_nothing_is_hidden() -> None:
    assert advice(75, WORDS, {}) is None
    assert advice(75, WORDS, {**BARE, OWN_LAUNCHER: "torchrun"}) is None
    for code in (0, 1, 130):
        assert advice(code, WORDS, BARE) is None


def test_a_mistake_under_bare_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun shows the text of the file that it has named; other ranks write it and say nothing."""
    monkeypatch.setattr("altup_moe.cli.time.sleep", lambda seconds: None)
    monkeypatch.delenv(OWN_LAUNCHER, raising=False)
    (tmp_path / "run.yaml").touch()
    words = ["train", str(tmp_path / "run.yaml"), "--tp", "2"]
    for rank in ("0", "1"):
        file = tmp_path / f"error{rank}.json"
        for name, value in {**BARE, "RANK": rank, "TORCHELASTIC_ERROR_FILE": str(file)}.items():
            monkeypatch.setenv(name, value)
        assert main(words) == 2
        lines = capfd.readouterr().err.splitlines()
        assert "nearest is parallel.tensor" in lines[0]
        assert len(lines) == (2 if rank == "0" else 1)
        shown = json.loads(file.read_text())["message"]["extraInfo"]
        assert f"altup-moe: {shown['py_callstack']}" == advice(2, words, BARE)
        assert shown["timestamp"].isdigit()
