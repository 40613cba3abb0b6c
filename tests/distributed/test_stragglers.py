"""Two ranks: the one that works longer is named, whatever the others wait for it; ranks of equal work are not."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from altup_moe.config import RunConfig
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run, train_quietly

pytestmark = pytest.mark.distributed


def _cpu_groups() -> Path | None:
    """Where a cgroup with a share of the cores can be made."""
    for root, file in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cgroup.controllers")):
        controllers = Path(root, "cgroup.subtree_control")
        if Path(root, file).is_file() and os.access(root, os.W_OK):
            return Path(root) if not controllers.is_file() or "cpu" in controllers.read_text() else None
    return None


CPU_GROUPS = _cpu_groups()
HIGH = 8.0
"""Threshold for equal ranks: on a machine that does other work, medians of theirs may differ, never so much twice in
a row."""


def _config(directory: Path, name: str, steps: int, threshold: float) -> RunConfig:
    """Four intervals."""
    config = text_run("dp2", directory, name, train={"steps": steps})
    return replace(config, log=replace(config.log, straggler_interval=steps // 4, straggler_threshold=threshold))


@contextmanager
def _fiftieth_of_a_core() -> Iterator[None]:
    """This process within a cgroup of version 1 or 2."""
    assert CPU_GROUPS is not None
    group = CPU_GROUPS / f"altup-moe-test-{os.getpid()}"
    group.mkdir()
    if (CPU_GROUPS / "cgroup.controllers").is_file():
        (group / "cpu.max").write_text("2000 100000")
    else:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("2000")
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (CPU_GROUPS / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _train_slowed(config: RunConfig, slow: int, seconds: float | None) -> str:
    """On a rank: train; from its first step on rank `slow` sleeps while it reads its samples, or has little of a core.

    Returns:
        What was printed.
    """
    import time

    from altup_moe.config.checks import check_config
    from altup_moe.train import loop, run

    batches, limits, steps = run.step_batches, ExitStack(), count()

    def slowed(*args: object) -> object:
        if os.environ["RANK"] == str(slow):
            if seconds is not None:
                time.sleep(seconds)
            elif next(steps) == 0:
                limits.enter_context(_fiftieth_of_a_core())
        return batches(*args)  # type: ignore[arg-type]

    run.step_batches = slowed  # type: ignore[assignment]
    out = io.StringIO()
    try:
        check_config(config, 2)
        with contextlib.redirect_stdout(out), limits:
            assert loop.train(config) == 0
        return out.getvalue()
    finally:
        run.step_batches = batches


@pytest.mark.parametrize("slow", [0, 1])
def test_the_slow_rank_is_named(slow: int, tmp_path: Path) -> None:
    config = _config(tmp_path, "slow", 8, 1.5)
    printed = run_ranks(2, _train_slowed, config, slow, 1.5)[0]
    measured = [one for one in records(config) if "slowest_score" in one]
    # The first interval is no measurement, the second makes a suspect.
    assert [(one["step"], one.get("slow_rank")) for one in measured] == [(4, None), (6, slow), (8, slow)]
    assert all(one["slowest_score"] > 1.5 for one in measured)
    assert f" | slow rank {slow} (" in printed


@pytest.mark.long  # a rank with so little of a core takes minutes where the machine is busy
@pytest.mark.skipif(CPU_GROUPS is None, reason="a cgroup of its own needs root and the cpu controller")
def test_a_rank_with_a_fiftieth_of_a_core_is_named(tmp_path: Path) -> None:
    """As on a node that is too hot. It is less than what a busy machine leaves the other rank."""
    config = _config(tmp_path, "cgroup", 12, 1.5)
    printed = run_ranks(2, _train_slowed, config, 1, None)[0]
    assert [one["slow_rank"] for one in records(config) if "slow_rank" in one][-1:] == [1]
    assert " | slow rank 1 (" in printed


def test_ranks_of_equal_work_are_not_named_and_losses_stay(tmp_path: Path) -> None:
    config = _config(tmp_path, "equal", 16, HIGH)
    assert run_ranks(2, train_quietly, config, 2) == [0, 0]
    assert not [one for one in records(config) if "slow_rank" in one]
    assert len([one for one in records(config) if "slowest_score" in one]) == 3
    off = replace(config, log=replace(config.log, run_dir=f"{config.log.run_dir}-off", straggler_interval=0))
    assert run_ranks(2, train_quietly, off, 2) == [0, 0]
    assert not [one for one in records(off) if "slowest_score" in one]
    assert losses(off) == losses(config)
