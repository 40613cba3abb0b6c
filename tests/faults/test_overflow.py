"""A gradient of a running training overflows on one rank in one step: that step is skipped, and training goes on."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run

pytestmark = pytest.mark.distributed

STEPS, BAD = 6, 3


def _train(config: RunConfig, factor: float) -> tuple[int, str]:
    """On a rank: train, with one gradient of rank 1 multiplied in step BAD. Returns the code and what was printed."""
    from altup_moe.train import run
    from altup_moe.train.loop import train

    build, backward = run.build_engine, 0

    def overflowing(*args: Any) -> Any:
        engine = build(*args)
        weight = next(p for chunk in engine.chunks for p in chunk.parameters() if p.requires_grad)

        def multiply(grad: torch.Tensor) -> torch.Tensor:
            nonlocal backward
            backward += 1
            return grad * (factor if backward == BAD else 1.0)

        if torch.distributed.get_rank() == 1:
            weight.register_hook(multiply)
        return engine

    check_config(config, 2)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), mock.patch.object(run, "build_engine", overflowing):
        return train(config), printed.getvalue()


@pytest.mark.fault("overflow")
def test_a_gradient_that_overflows_costs_one_step(tmp_path: Path, saw: Callable[[float, int, str], None]) -> None:
    sections = {"train": {"steps": STEPS, "micro_batch_size": 2, "global_batch_size": 4, "eval_interval": 0}}
    whole, bad = (text_run("dp2", tmp_path, name, **sections) for name in ("whole", "bad"))
    assert [code for code, _ in run_ranks(2, _train, whole, 1.0)] == [0, 0]
    began = time.monotonic()
    (code, printed), (other, _) = run_ranks(2, _train, bad, 1e25)
    seconds = time.monotonic() - began
    (line,) = [line for line in printed.splitlines() if "is skipped" in line]
    assert line.startswith(f"step {BAD} is skipped: ")
    assert "gradient norm" in line
    assert (code, other) == (0, 0)
    assert [record["skipped_steps"] for record in records(bad)] == [0, 0, 1, 1, 1, 1]
    assert losses(bad)[:BAD] == losses(whole)[:BAD]
    # The step changed nothing: the next one sees the weights from before it, and all numbers stay finite.
    assert losses(bad)[BAD] != losses(whole)[BAD]
    assert all(loss < 10 for loss in losses(bad))
    saw(seconds, code, line)
