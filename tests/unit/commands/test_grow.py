"""The tool: a run directory grows into one that can be gone on with; what cannot is one line and exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from altup_moe.checkpoint.manifest import read_manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint, latest_checkpoint
from altup_moe.cli import main as altup_moe
from altup_moe.config.load import load_config, save_config
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.sources import LeftOut, local_documents
from altup_moe.data.tokenizer import train_bpe
from altup_moe.inference.grow import go_on
from tests.command import command
from tests.unit.checkpoint.models_for_tests import STEP, save, tiny

main = command("grow")

TEXT = "for each of the words in a text, another one is written; "


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing small files to the disk is most of the time of these tests."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A run directory with data, tokenizer, metrics and a checkpoint of a small dense model."""
    text = tmp_path / "a.txt"
    text.write_text(TEXT * 200)
    tokenizer = train_bpe([TEXT], 262, tmp_path / "bpe")
    prepare_tokens(local_documents([text] * 4, "text", LeftOut()), tokenizer, tmp_path / "data", "a.txt")
    run = tmp_path / "source"
    config = tiny(
        model={"vocab_size": 264},
        data={"corpus": str(tmp_path / "data"), "valid_fraction": 0.2},
        train={"steps": 9, "eval_interval": 0, "eval_samples": 4},
        log={"run_dir": str(run), "tensorboard": False},
    )
    save(run, config)
    save_config(config, run / "config.yaml")
    shutil.copytree(tmp_path / "bpe", run / "tokenizer")
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, STEP + 3)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run


GROWN = ["--altup.width", "4", "--moe.num_experts=4", "--moe.ffn_hidden_size", "24", "--model.num_layers", "5"]


def grow(*words: object) -> int:
    return main([str(word) for word in words])


def test_a_grown_run_evaluates_as_its_source(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = source.parent / "new" / "grown"
    assert grow(source, dst, *GROWN, "--train.steps", 12) == 0
    printed = capsys.readouterr().out
    assert "largest difference" in printed
    assert "starts from zero for" in printed
    assert printed.splitlines()[-1] == f"go on: altup-moe train {dst}/config.yaml (to step 12)"
    assert go_on("runs/wide", 8, 8) == (
        "all 8 steps are done; go on: altup-moe train runs/wide/config.yaml --train.steps 16"
    )
    assert sorted(file.name for file in dst.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl", "tokenizer"]
    assert [file.name for file in dst.parent.iterdir()] == ["grown"]
    config, source_config = load_config(dst / "config.yaml"), load_config(source / "config.yaml")
    assert (config.altup.width, config.moe.num_experts, config.model.num_layers) == (4, 4, 5)
    assert (config.log.run_dir, config.train.steps) == (str(dst), 12)
    (change,) = read_manifest(find_checkpoint(dst)).changes
    assert change["step"] == STEP
    assert change["keys"] == {
        "model.num_layers": [source_config.model.num_layers, 5],
        "altup.width": [source_config.altup.width, 4],
        "moe.num_experts": [source_config.moe.num_experts, 4],
        "train.steps": [9, 12],
    }
    steps = [json.loads(line)["step"] for line in (dst / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEP + 1))

    figures = []
    for run in (source, dst):
        assert altup_moe(["evaluate", str(run), "--json"]) == 0
        figures.append(json.loads(capsys.readouterr().out))
    assert figures[0]["loss"] == pytest.approx(figures[1]["loss"], rel=1e-6)
    assert figures[1]["step"] == STEP


def test_a_checkpoint_directory_is_a_source_too(source: Path) -> None:
    directory = latest_checkpoint(source)
    assert directory is not None
    assert grow(directory, source.parent / "grown", "--altup.width", 4, "--no-check") == 0
    assert (source.parent / "grown" / "tokenizer").is_dir()
    shutil.move(directory, source.parent / "alone")
    assert grow(source.parent / "alone", source.parent / "other", "--altup.width", 4) == 0
    assert sorted(file.name for file in (source.parent / "other").iterdir()) == ["checkpoints", "config.yaml"]


def test_noise_and_seeds(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--moe.num_experts", 4, "--moe.ffn_hidden_size", 24, "--expert-noise", 0.1]
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert grow(source, source.parent / name, *words, "--seed", seed) == 0
        found = latest_checkpoint(source.parent / name)
        assert found is not None
        with Checkpoint(found) as checkpoint:
            key = "weights/model.layers.1.mlp.experts.{}.up_proj.weight"
            weights.append([torch.from_numpy(checkpoint.read(key.format(n)).view("float32")) for n in (0, 3)])
    assert "noise was asked for" in capsys.readouterr().out
    assert torch.equal(weights[0][1], weights[1][1])
    assert torch.equal(weights[0][0], weights[2][0])
    assert not torch.equal(weights[0][1], weights[2][1])


def test_a_function_that_changed_is_not_kept(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "altup_moe.altup.widening.widened_prediction",
        lambda leaf, value, times, *_: value.repeat(*[times] * value.ndim),
    )
    assert grow(source, source.parent / "x" / "y", "--altup.width", 4) == 1
    error = capsys.readouterr().err
    assert error.startswith("altup-moe: error: logits differ by")
    assert error.count("\n") == 1
    assert not (source.parent / "x").exists()
    assert grow(source, source.parent / "x" / "y", "--altup.width", 4, "--no-check") == 0


def _fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert grow(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("altup-moe: error: ")
    assert error.count("\n") == 1
    return error


def test_what_cannot_be_grown_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(source.parent.iterdir())
    dst = source.parent / "new" / "grown"
    wider = ["--altup.width", 4]
    assert "name a run or checkpoint" in _fails(capsys, source)
    assert "unexpected word" in _fails(capsys, source, dst, "more")
    assert "exists already" in _fails(capsys, source, source, *wider)
    assert "holds no config.yaml" in _fails(capsys, source.parent / "bpe", dst, *wider)
    assert "altup.width=3: expects one of" in _fails(capsys, source, dst, "--altup.width", 3)
    assert "nearest is altup.width" in _fails(capsys, source, dst, "--altup.widht", 4)
    assert "log.run_dir" in _fails(capsys, source, dst, *wider, "--log.run_dir", "z")
    noise = ["--coefficient_noise", -1]
    assert "--coefficient-noise=-1.0: must be at least 0" in _fails(capsys, source, dst, *wider, *noise)
    assert "nothing grows" in _fails(capsys, source, dst, "--train.steps", 50)
    experts = ["--moe.num_experts", 4, "--moe.ffn_hidden_size", 16]
    assert "moe.ffn_hidden_size=16: experts of layer 1" in _fails(capsys, source, dst, *experts)
    assert sorted(source.parent.iterdir()) == before


def test_a_damaged_source_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = next((source / "checkpoints").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert f"{file}: its bytes are not those" in _fails(capsys, source, source.parent / "g", "--altup.width", 4)
    assert not (source.parent / "g").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--coefficient-noise" in text
    assert "altup.width" in text
