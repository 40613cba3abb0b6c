"""The benchmark of checkpoints: the model's size, what is compared, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from altup_moe.bench import bench_checkpoint as bench_module
from altup_moe.bench.bench_checkpoint import measure_checkpoint, timing
from altup_moe.bench.checkpoint_rivals import SavedBothWays, benchmark_model, forget, size_of
from altup_moe.bench.options import CheckpointBench
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import step_name
from altup_moe.config import ConfigError

ROWS = ["save", "load, cold", "load, warm", "asynchronous save, waiting", "a step beside it"]
ROWS += ["a step, saved in memory", "load from memory"]


@pytest.mark.parametrize(("megabytes", "least"), [(3, 2), (512, 450)])
def test_the_model_is_of_the_wanted_size(megabytes: int, least: float) -> None:
    config, forms = benchmark_model(megabytes)
    assert least <= size_of(forms) / 1e6 <= megabytes
    assert {form.dtype for form in forms.values()} == {"BF16", "F32"}
    assert config.moe.num_experts == 8


def test_one_layer_is_the_least() -> None:
    config, _ = benchmark_model(1)
    assert config.model.num_layers >= 1
    assert benchmark_model(1)[1]


def test_both_ways_save_and_load_the_same(tmp_path: Path) -> None:
    bench = SavedBothWays(tmp_path, 1)
    bench.save_ours()
    bench.save_plain()
    with Checkpoint(bench.ours / step_name(1)) as checkpoint:
        checkpoint.verify()
        assert checkpoint.manifest.tensors.keys() == bench.tensors.keys()
    for load in (bench.load_ours, bench.load_plain):
        with pytest.raises(AssertionError):
            bench.check()
        forget(tmp_path)
        load()
        bench.check()
    assert all(not torch.count_nonzero(tensor) for tensor in bench.targets.values())


def test_turns_and_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    bench = SavedBothWays(tmp_path, 1)
    monkeypatch.setattr(bench, "save_ours", lambda: order.append("ours"))
    monkeypatch.setattr(bench, "save_plain", lambda: order.append("plain"))
    for name in ("load_ours", "load_plain", "check"):
        monkeypatch.setattr(bench, name, lambda: None)
    rows = measure_checkpoint(bench, 3)
    assert order == ["ours", "plain", "plain", "ours"] * 2, "who begins changes, and one turn is not counted"
    assert [found.name for found in rows] == ROWS[:3]
    found = timing("x", 8.0, [1.0, 9.0, 2.0], [4.0], goal=1.3)
    assert (found.seconds, found.least, found.most, found.ratio) == (2.0, 1.0, 9.0, 0.5)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        bench_module, "reshard_peak", lambda bench: {"peak_mb": 83.0, "goal_mb": 266.0, "checkpoint_mb": 1.0}
    )
    options = CheckpointBench(megabytes=1, repeats=1, threads=1, directory=str(tmp_path))
    assert bench_module.bench_checkpoint(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "median of 1 interleaved turns; load average" in lines[0]
    assert [line.strip().split("  ")[0] for line in lines[2:9]] == ROWS
    assert lines[9] == "  altup-moe reshard: peak memory 83 MB  < 266"
    assert bench_module.bench_checkpoint(CheckpointBench(1, 1, 1, str(tmp_path), json=True)) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["rows"]] == ROWS
    assert all(each["ratio"] > 0 and each["mb_per_second"] > 0 for each in found["rows"])
    assert list(tmp_path.iterdir()) == [], "nothing stays"


def test_more_than_the_machine_holds_is_refused_at_once(tmp_path: Path) -> None:
    """Its layers would be counted without end."""
    with pytest.raises(ConfigError, match=r"megabytes=2000000000: .* room for "):
        bench_module.bench_checkpoint(CheckpointBench(2_000_000_000, 1, 1, str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_peak_memory_of_resharding(tmp_path: Path) -> None:
    found = bench_module.reshard_peak(SavedBothWays(tmp_path, 2))
    assert 0 < found["peak_mb"] < found["goal_mb"]
