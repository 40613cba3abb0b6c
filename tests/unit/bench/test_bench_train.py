"""`bench train`: both sides train the same model, and the table says what was measured."""

from __future__ import annotations

import pytest
import torch

from altup_moe.bench import bench_train
from altup_moe.bench.bench_train import COMPILED_STEP, OUR_STEP, TrainRow, mixtral_step, train_config, train_table
from altup_moe.bench.options import TrainBench
from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_names import global_shapes
from altup_moe.parallel.topology import Topology


def test_both_sides_train_the_same_shape() -> None:
    bench = TrainBench(hidden_size=64, num_layers=2, ffn_hidden_size=32, moe_experts=4, vocab_size=64, seq_length=16)
    config = train_config(bench)
    step = mixtral_step(config, "eager", torch.device("cpu"))
    assert step() > 0
    model = next(c.cell_contents for c in step.__closure__ if isinstance(c.cell_contents, torch.nn.Module))
    ours = sum(torch.Size(shape).numel() for shape in global_shapes(config).values())
    assert sum(p.numel() for p in model.parameters()) == ours


def test_the_train_table() -> None:
    rows = [TrainRow("transformers, eager", 10.0, 9.0, 100.0, 1.0), TrainRow(OUR_STEP, 5.0, 5.0, 200.0, 2.0)]
    assert train_table(TrainBench(), 0.0, rows)[-1].startswith("met     2.00")
    rows.append(TrainRow(COMPILED_STEP, 8.0, 8.0, 125.0, 1.25))
    assert train_table(TrainBench(), 0.0, rows)[-1].startswith(f"not met 1.25  {COMPILED_STEP}")


def test_compiled_regions_are_measured_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which runs are stepped, not how fast they are."""
    stepped: list[RunConfig] = []

    class Stepped:
        def __init__(self, config: RunConfig, topo: Topology) -> None:
            stepped.append(config)

        def step(self) -> float:
            return 1.0

    monkeypatch.setattr(bench_train, "Stepper", Stepped)
    monkeypatch.setattr(bench_train, "mixtral_step", lambda *_: lambda: 1.0)
    names = [row.name for row in bench_train.measure_train(TrainBench(repeats=1, compile=True))]
    assert names.count(COMPILED_STEP) == 1
    assert [config.train.compile for config in stepped] == [False] * (len(stepped) - 1) + [True]
