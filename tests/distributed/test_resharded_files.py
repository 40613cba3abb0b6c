"""A run directory made by tools/reshard.py trains on under its layout, with the losses of the run it came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altup_moe.checkpoint.manifest import read_manifest
from altup_moe.checkpoint.slices import num_elements
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.commands import reshard
from altup_moe.config.load import load_config
from tests.checkpoints import stored_bytes
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, text_run, train_on_ranks, train_quietly

pytestmark = pytest.mark.distributed


def test_training_goes_on_from_resharded_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = {"parallel": {"distributed_optimizer": True}}
    whole = text_run("tp2", tmp_path, "whole", train={"steps": 8}, **optimizer)
    cut = text_run("tp2", tmp_path, "cut", train={"steps": 8, "stop_after": 4}, **optimizer)
    assert set(train_on_ranks("tp2", whole)) == set(train_on_ranks("tp2", cut)) == {0}
    new = tmp_path / "new"
    arguments = [cut.log.run_dir, str(new), "--pipeline", "2", "--expert", "2", "--verify", "--json"]
    assert reshard.main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["left_out"]  # random streams that the old run has saved
    assert stored_bytes(find_checkpoint(new)) == stored_bytes(find_checkpoint(Path(cut.log.run_dir)))
    config = load_config(new / "config.yaml", ["--train.stop_after", "null"])
    assert set(run_ranks(4, train_quietly, config, 4)) == {0}
    assert losses(config)[:4] == losses(cut)
    assert losses(config) == pytest.approx(losses(whole), rel=1e-4)


def test_files_are_those_the_ranks_would_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a distributed optimizer, the tool and the trainer deal out the same bytes to the same number of files."""
    config = text_run("tp2-pp2-ep2", tmp_path, "run", train={"steps": 1})
    assert set(train_on_ranks("tp2-pp2-ep2", config)) == {0}
    arguments = ["--tensor", "2", "--pipeline", "2", "--expert", "2", "--json"]
    assert reshard.main([config.log.run_dir, str(tmp_path / "new"), *arguments]) == 0
    saved, made = (read_manifest(find_checkpoint(tmp_path / name)) for name in ("run", "new"))
    assert saved.files.keys() == made.files.keys()
    for name, tensor in made.tensors.items():
        for piece in tensor.pieces:
            # What the tool gives to a rank's tensor is put together from whole pieces of the trainer's.
            inside = [
                p
                for p in saved.tensors[name].pieces
                if all(a <= c and d <= b for (a, b), (c, d) in zip(piece.tensor_slice, p.tensor_slice, strict=True))
            ]
            assert sum(num_elements(p.tensor_slice) for p in inside) == num_elements(piece.tensor_slice), name
