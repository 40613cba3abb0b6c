"""Looking inside: what is printed is what torch finds in the same tensors, and a difference is named and sized."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint.manifest import MANIFEST
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.commands import reshard
from altup_moe.config import RunConfig
from tests.checkpoints import head, random_tensors, write_tensors
from tests.command import command
from tests.distributed.cases import small

main = command("inspect")

ROOT = Path(__file__).parents[3]
LAYER = "model.layers.1"
"""The first one with experts."""


@pytest.fixture
def config() -> RunConfig:
    return small("tp2-pp2-ep2")


@pytest.fixture
def tensors(config: RunConfig) -> dict[str, Tensor]:
    return {**random_tensors(config, dtype=torch.bfloat16), "rng/00003/cpu": torch.arange(5, dtype=torch.uint8)}


@pytest.fixture
def run_dir(tmp_path: Path, config: RunConfig, tensors: dict[str, Tensor]) -> Path:
    write_tensors(tmp_path / "run", head(config, 7, world_size=4, libraries={"torch": "2.x"}), tensors)
    return tmp_path / "run"


def lines(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().out.splitlines()


def test_what_it_is_of(run_dir: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, Tensor]) -> None:
    text = "\n".join(lines(capsys, run_dir, "--no-norms", "--verify"))
    assert str(find_checkpoint(run_dir)) in text
    assert "step 7, 56 samples, 6 updates, 1 skipped; format 2" in text
    assert "saved by tensor 2, pipeline 2, expert 2 on 4 ranks" in text
    assert "libraries torch 2.x" in text
    assert "data f00d" in text
    parameters = sum(t.numel() for name, t in tensors.items() if name.startswith("weights/"))
    assert f"{parameters:,} parameters, {len(tensors)} tensors in 1 files" in text
    assert "with optimizer state, 1 random streams" in text
    assert "verified: all 1 files" in text


def test_norms_are_those_of_torch(
    run_dir: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, Tensor]
) -> None:
    printed = json.loads(lines(capsys, run_dir, "--json")[0])
    seen = {}
    for entry in printed["entries"]:
        for kind, value in entry["norms"].items():
            seen[f"{kind}/{entry['name']}"] = value
            stored = tensors[f"{kind}/{entry['name']}"]
            assert tuple(entry["shape"]) == stored.shape
            assert entry["dtypes"][kind] == {torch.float32: "F32", torch.bfloat16: "BF16"}[stored.dtype]
            assert value == pytest.approx(stored.double().norm().item(), rel=1e-12)
    assert {entry["name"] for entry in printed["entries"]} == {n.partition("/")[2] for n in seen}
    assert seen.keys() == {name for name in tensors if not name.startswith("rng/")}


def test_layers_are_groups_and_experts_are_folded(
    run_dir: Path, capsys: pytest.CaptureFixture[str], tensors: dict[str, Tensor]
) -> None:
    text = lines(capsys, run_dir, "--tensors", f"{LAYER}.*")
    assert [line for line in text if line.startswith("model.")] == [LAYER]
    (row,) = (line.split() for line in text if "down_proj" in line)
    values = sorted(tensors[f"weights/{LAYER}.mlp.experts.{e}.down_proj.weight"].double().norm() for e in range(4))
    expected = [f"{values[0].item():.6g}", "..", f"{values[-1].item():.6g}"]
    assert row[:8] == ["mlp.experts.0-3.down_proj.weight", "4", "x", "[32,", "24]", "BF16", *expected[:2]]
    assert row[8] == expected[2]
    assert {"exp_avg", "exp_avg_sq", "main"} <= set(row)
    text = lines(capsys, run_dir, "--tensors", f"exp_avg/{LAYER}.mlp.experts.2.*", "--no-norms")
    (row,) = (line.split() for line in text if "down_proj" in line)
    assert row == ["mlp.experts.2.down_proj.weight", "[32,", "24]", "exp_avg", "F32"]


def test_the_same_run_under_another_layout_is_equal(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run_dir.parent / "new"
    assert reshard.main([str(run_dir), str(new), "--tensor", "2", "--expert", "2"]) == 0
    capsys.readouterr()
    (line,) = lines(capsys, run_dir, "--diff", new, "--verify")
    assert line.endswith("tensors are equal")


def test_differences_are_sized_and_sorted(
    run_dir: Path, capsys: pytest.CaptureFixture[str], config: RunConfig, tensors: dict[str, Tensor]
) -> None:
    other = {name: value.clone() for name, value in tensors.items()}
    small_one, large_one = "exp_avg/model.norm.weight", f"weights/{LAYER}.mlp.router.weight"
    other[small_one][3] += 1e-3
    other[large_one][2, 1:3] *= 2
    other["rng/00003/cpu"] += 1
    write_tensors(run_dir.parent / "other", head(config, 8, world_size=4), other)
    printed = json.loads(lines(capsys, run_dir, "--diff", run_dir.parent / "other", "--json", code=1)[0])
    assert printed["counters"]["step"] == [7, 8]
    assert printed["equal"] is False
    assert [d["name"] for d in printed["differences"]] == [large_one, small_one]
    for found, count in zip(printed["differences"], (2, 1), strict=True):
        a, b = tensors[found["name"]].double(), other[found["name"]].double()
        apart = (a - b).abs().max().item()
        assert found["absolute"] == pytest.approx(apart, rel=1e-12)
        largest = max(a.abs().max().item(), b.abs().max().item())
        assert found["relative"] == pytest.approx(apart / largest, rel=1e-12)
        assert found["count"] == count
    text = lines(capsys, run_dir, "--diff", run_dir.parent / "other", code=1)
    assert text[0] == "step: 7 and 8"
    assert any(line.startswith(f"{large_one}: relative ") for line in text)
    assert text[-1].startswith("2 of ")


def test_not_a_number_and_other_tensors_come_first(
    run_dir: Path, capsys: pytest.CaptureFixture[str], config: RunConfig, tensors: dict[str, Tensor]
) -> None:
    other = {n: t.clone() for n, t in tensors.items() if n.startswith(("weights/", "rng/"))}
    other = {n: t.float() if n == "weights/lm_head.weight" else t for n, t in other.items()}
    other["weights/model.norm.weight"][0] = float("nan")
    write_tensors(run_dir.parent / "other", head(config, 7, world_size=4), other)
    text = lines(capsys, run_dir, "--diff", run_dir.parent / "other", "--tensors", "*norm.weight", code=1)
    assert "exp_avg/model.norm.weight: only in the first" in text
    assert any(line.startswith("weights/model.norm.weight: relative inf") for line in text)
    text = lines(capsys, run_dir.parent / "other", "--diff", run_dir, "--tensors", "*model.norm.weight", code=1)
    assert "exp_avg/model.norm.weight: only in the second" in text
    text = lines(capsys, run_dir, "--diff", run_dir.parent / "other", "--tensors", "weights/lm_head.weight", code=1)
    assert text[0] == "weights/lm_head.weight: BF16 [64, 32] and F32 [64, 32]"


def test_another_shape(run_dir: Path, capsys: pytest.CaptureFixture[str], config: RunConfig) -> None:
    other = replace(config, model=replace(config.model, vocab_size=128))
    write_tensors(run_dir.parent / "other", head(other, 7, world_size=4), random_tensors(other))
    text = lines(capsys, run_dir, "--diff", run_dir.parent / "other", "--tensors", "exp_avg/lm*", code=1)
    assert text[0] == "exp_avg/lm_head.weight: F32 [64, 32] and F32 [128, 32]"


def test_what_is_wrong_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def problem(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("altup-moe: error: ")
        assert shown.err.count("\n") == 1
        return shown.err

    assert "holds no config.yaml" in problem(run_dir.parent)
    assert "PATH is missing" in problem()
    assert "matches no tensor" in problem(run_dir, "--tensors", "model.layer.0")
    assert "nearest is --norms" in problem(run_dir, "--norm")
    directory = find_checkpoint(run_dir)
    file = next(directory.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main([str(run_dir), "--no-norms"]) == 0
    capsys.readouterr()
    assert f"{file.name}: its bytes are not those that were saved" in problem(run_dir, "--verify")
    assert "its bytes are not those" in problem(run_dir, "--diff", run_dir, "--verify")
    file.write_bytes(data[:-8])
    assert "were saved" in problem(run_dir)
    (directory / MANIFEST).write_text("{}")
    assert MANIFEST in problem(run_dir)


def test_torch_is_not_imported(run_dir: Path) -> None:
    code = (
        "import sys; from altup_moe.cli import main; code = main(['inspect', *sys.argv[1:]]);"
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(run_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away(run_dir: Path) -> None:
    command = f"set -o pipefail; {sys.executable} tools/inspect_checkpoint.py {run_dir} --no-norms | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
