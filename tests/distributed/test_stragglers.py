"""Two ranks: the one that works longer is named, whatever the others wait for it; ranks of equal work are not.

A node with little of a core is in tests/faults/test_slow.py.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.config import RunConfig
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run, train_quietly

pytestmark = pytest.mark.distributed


HIGH = 8.0
"""Threshold for equal ranks: on a machine that does other work, medians of theirs may differ, never so much twice in
a row."""


def _config(directory: Path, name: str, steps: int, threshold: float) -> RunConfig:
    """Four intervals."""
    config = text_run("dp2", directory, name, train={"steps": steps})
    return replace(config, log=replace(config.log, straggler_interval=steps // 4, straggler_threshold=threshold))


def _train_slowed(config: RunConfig, slow: int, seconds: float) -> str:
    """On a rank: train; rank `slow` sleeps before it has a step's samples.

    Returns:
        What was printed.
    """
    import time

    from altup_moe.config.checks import check_config
    from altup_moe.train import loop, run

    batches = run._own_batches

    def slowed(*args: object) -> object:
        if os.environ["RANK"] == str(slow):
            time.sleep(seconds)
        return batches(*args)  # type: ignore[arg-type]

    run._own_batches = slowed  # type: ignore[assignment]
    out = io.StringIO()
    try:
        check_config(config, 2)
        with contextlib.redirect_stdout(out):
            assert loop.train(config) == 0
        return out.getvalue()
    finally:
        run._own_batches = batches


@pytest.mark.parametrize("slow", [0, 1])
def test_the_slow_rank_is_named(slow: int, tmp_path: Path) -> None:
    config = _config(tmp_path, "slow", 8, 1.5)
    printed = run_ranks(2, _train_slowed, config, slow, 1.5)[0]
    measured = [one for one in records(config) if "slowest_score" in one]
    # The first interval is no measurement, the second makes a suspect.
    assert [(one["step"], one.get("slow_rank")) for one in measured] == [(4, None), (6, slow), (8, slow)]
    assert all(one["slowest_score"] > 1.5 for one in measured)
    assert f" | slow rank {slow} (" in printed


def test_ranks_of_equal_work_are_not_named_and_losses_stay(tmp_path: Path) -> None:
    config = _config(tmp_path, "equal", 16, HIGH)
    assert run_ranks(2, train_quietly, config, 2) == [0, 0]
    assert not [one for one in records(config) if "slow_rank" in one]
    assert len([one for one in records(config) if "slowest_score" in one]) == 3
    off = replace(config, log=replace(config.log, run_dir=f"{config.log.run_dir}-off", straggler_interval=0))
    assert run_ranks(2, train_quietly, off, 2) == [0, 0]
    assert not [one for one in records(off) if "slowest_score" in one]
    assert losses(off) == losses(config)
