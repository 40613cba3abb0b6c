"""Every example runs, on tiny sizes: one process without a world, two ranks as a launcher starts them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.api.tables import tables_kept
from tests.distributed.ranks import run_ranks

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = "--model.num_layers 2 --model.hidden_size 32 --model.ffn_hidden_size 64 --train.steps 3"
TEXT = f"{SMALL} --model.seq_length 32 --train.eval_samples 4"
WORDS = {
    "train_notebook": f"{TEXT} --model.vocab_size 320",
    "own_loop": SMALL,
    "own_variant": f"{TEXT} --model.vocab_size 320",
    "own_backend": f"{TEXT} --model.vocab_size 320 --moe.ffn_hidden_size 16",
    "own_data": TEXT,
    "study_to_pandas": "",
}
LONG = 80
"""Lines that an example may have."""


def run_example(name: str, words: str, directory: Path, alone: bool) -> str:
    """On a rank: what the example prints. ``alone``: as in a process that no launcher has started."""
    if alone:
        dist.destroy_process_group()
        for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            os.environ.pop(key, None)
    os.chdir(directory)
    argv, sys.argv = sys.argv, [f"{name}.py", *words.split()]
    try:
        with tables_kept(), contextlib.redirect_stdout(io.StringIO()) as said:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return said.getvalue()
    finally:
        sys.argv = argv


def printed(name: str, tmp_path: Path, ranks: int = 1) -> list[str]:
    return run_ranks(ranks, run_example, name, WORDS[name], tmp_path, ranks == 1)


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def test_each_is_tested_listed_and_short() -> None:
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert set(files) == set(WORDS)
    listed = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(files)
    for path in files.values():
        text = path.read_text()
        assert len(text.splitlines()) <= LONG, path
        used = {line.split()[1].partition(".")[0] for line in text.splitlines() if re.match(r"(import|from) ", line)}
        assert used <= {"sys", "pathlib", "copy", "numpy", "torch", "altup_moe"}, path
        assert "from altup_moe import api" in text
        assert not re.search(r"altup_moe\.(?!api\b)\w+ import", text), path


@pytest.mark.distributed
def test_a_notebook_trains_generates_and_reads(tmp_path: Path) -> None:
    (text,) = printed("train_notebook", tmp_path)
    assert "0 steps are done" in text
    assert "saved step_00000003" in text
    assert "embedding table: 320 tokens x 32 features" in text
    assert (tmp_path / "runs/notebook/metrics.jsonl").read_text().count("\n") == 3


@pytest.mark.distributed
def test_a_loop_of_ones_own_on_two_ranks(tmp_path: Path) -> None:
    first, second = printed("own_loop", tmp_path, ranks=2)
    assert first.startswith("step 1: loss 4.")
    assert "2 rank(s); saved runs/own_loop/checkpoints/step_00000003" in first
    assert second == ""


@pytest.mark.distributed
def test_a_variant_of_ones_own_learns(tmp_path: Path) -> None:
    (text,) = printed("own_variant", tmp_path)
    shipped, own, coefficients = text.splitlines()
    assert shipped.startswith("altup")
    assert own.startswith("leaky")
    assert numbers(own) != numbers(shipped)
    # It begins at 1, and three steps have moved it.
    assert all(0.9 < value != 1.0 for value in numbers(coefficients))


@pytest.mark.distributed
def test_a_backend_of_ones_own_is_the_same_model(tmp_path: Path) -> None:
    (text,) = printed("own_backend", tmp_path)
    shipped, own, last = text.splitlines()
    assert shipped.startswith("torch")
    assert own.startswith("looped")
    assert numbers(own)[1] < numbers(own)[0]
    assert numbers(last)[0] < 1e-4


@pytest.mark.distributed
def test_data_and_objective_of_ones_own(tmp_path: Path) -> None:
    (text,) = printed("own_data", tmp_path)
    assert "held out: " in text
    assert "'12 + 30 = 42\\n7 + 8 =' ->" in text
    assert (tmp_path / "runs/own_data/data").is_dir()


def test_a_study_as_a_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["study_to_pandas.py"])
    runpy.run_path(str(EXAMPLES / "study_to_pandas.py"), run_name="__main__")
    text = capsys.readouterr().out
    assert "33 rows, 0 of them failed" in text
    assert re.search(r"altup recycled +altup-k4 +3 +836528 ", text)
    assert "not beaten in time and loss: dense, sum-k2, altup-k4" in text
