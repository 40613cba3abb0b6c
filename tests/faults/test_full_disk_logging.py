"""A disk that fills up while a run trains, and standard output that fails: the run goes on, and no line is missing."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.config import RunConfig
from altup_moe.train.metrics import StepMetrics
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, routing_lines, text_run
from tests.faults.disks import AS_ROOT, fill, mounted

pytestmark = pytest.mark.distributed

STEPS, FULL, ROOM = 24, 3, 21
"""The disk is full after step FULL, and has room again after step ROOM."""


def _train(config: RunConfig, filler: Path | None, stdout: str) -> tuple[int, str]:
    """On the only rank: train with standard output on a file; returns the exit code and standard error."""
    import contextlib
    import io
    import warnings

    from altup_moe.config.checks import check_config
    from altup_moe.train.loop import train

    def enough(metrics: StepMetrics) -> bool:
        if filler is not None and metrics.step == FULL:
            fill(filler)
        if filler is not None and metrics.step == ROOM:
            filler.unlink()
        return False

    check_config(config, 1)
    errors = io.StringIO()
    own = sys.stdout
    sys.stdout = _reader_gone() if stdout == "closed pipe" else open(stdout, "w")  # noqa: SIM115
    try:
        with contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = train(config, enough)
        sys.stdout.close()  # as at the interpreter's exit: nothing may be left that fails
        return code, errors.getvalue()
    finally:
        sys.stdout = own


def _reader_gone() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def _config(directory: Path, name: str, **log: object) -> RunConfig:
    config = text_run("one", directory, name, train={"steps": STEPS})
    return replace(config, log=replace(config.log, tensorboard=True, routing_interval=1, **log))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A directory with the tokens, and a run that nothing happened to."""
    directory = tmp_path_factory.mktemp("runs")
    config = _config(directory, "quiet")
    assert run_ranks(1, _train, config, None, os.devnull) == [(0, "")]
    return directory, config


def _events(run_dir: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss/total")]


@pytest.mark.fault("full-disk-logging")
@pytest.mark.skipif(not AS_ROOT, reason="a disk of its own needs root")
def test_a_disk_that_fills_up_costs_no_line(
    quiet: tuple[Path, RunConfig], saw: Callable[[float, int, str], None]
) -> None:
    directory, whole = quiet
    with mounted(directory / "disk", 40 << 20) as disk:
        config = _config(directory, "disk/run")
        began = time.monotonic()
        ((code, said),) = run_ranks(1, _train, config, disk / "filler", os.devnull)
        seconds = time.monotonic() - began
        assert code == 0
        run_dir = Path(config.log.run_dir)
        assert [record["step"] for record in records(config)] == list(range(1, STEPS + 1))
        assert losses(config) == losses(whole)
        assert routing_lines(config) == routing_lines(whole)
        assert _events(run_dir) == list(range(1, STEPS + 1))
        assert (run_dir / "checkpoints" / "latest").read_text().split() == [f"step_{STEPS:08d}"]
        # The lines between fill more than the page that the disk had given the file before.
        (written,) = [line for line in said.splitlines() if "metrics.jsonl: written again" in line]
        assert "line(s) that waited" in written
        saw(seconds, code, written)
        for file in {line.partition(": ")[0] for line in said.splitlines()}:
            mine = [line for line in said.splitlines() if line.startswith(f"{file}: ")]
            assert len(mine) == 2, said
            assert "No space left on device; training goes on" in mine[0]
            assert "written again" in mine[1]


@pytest.mark.skipif(not AS_ROOT, reason="a disk of its own needs root")
def test_lines_that_never_find_room_are_counted(quiet: tuple[Path, RunConfig], tmp_path: Path) -> None:
    """Checkpoints lie elsewhere. The training is done and saved: its exit code says so."""
    directory, whole = quiet
    with mounted(tmp_path / "disk", 1 << 20) as disk:
        config = _config(directory, "elsewhere")
        config = replace(config, log=replace(config.log, run_dir=str(disk / "run"), tensorboard=False))
        (tmp_path / "checkpoints").mkdir()
        (disk / "run").mkdir()
        (disk / "run" / "checkpoints").symlink_to(tmp_path / "checkpoints")
        ((code, said),) = run_ranks(1, _train_and_stay_full, config, disk / "filler")
        assert code == 0
        assert (tmp_path / "checkpoints" / f"step_{STEPS:08d}").is_dir()
        kept = records(config)
        assert [record["loss"] for record in kept] == losses(whole)[: len(kept)]
        missing = STEPS - len(kept)
        assert 0 < missing <= STEPS - FULL
        assert f"metrics.jsonl: {missing} line(s) were not written (No space left on device)" in said
        assert (disk / "run" / "metrics.jsonl").read_text().endswith("\n"), "no line in part"


def _train_and_stay_full(config: RunConfig, filler: Path) -> tuple[int, str]:
    """On the only rank: the disk is filled after step FULL; each line is more than a page has left."""
    from altup_moe.train import kept_file

    write = kept_file.KeptFile.write

    def long(self: Any, record: bytes) -> None:
        # JSON may have spaces before its end.
        write(self, record.rstrip(b"\n") + b" " * 5000 + b"\n")

    kept_file.KeptFile.write = long  # type: ignore[method-assign]
    try:
        return _train_without_room(config, filler)
    finally:
        kept_file.KeptFile.write = write  # type: ignore[method-assign]


def _train_without_room(config: RunConfig, filler: Path) -> tuple[int, str]:
    import contextlib
    import io

    from altup_moe.train.loop import train

    errors = io.StringIO()

    def enough(metrics: StepMetrics) -> bool:
        if metrics.step == FULL:
            fill(filler)
        return False

    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        return train(config, enough), errors.getvalue()


@pytest.mark.parametrize("stdout", ["/dev/full", "closed pipe"])
def test_standard_output_that_fails_stops_no_run(quiet: tuple[Path, RunConfig], stdout: str) -> None:
    directory, whole = quiet
    config = _config(directory, f"output {stdout.strip('/').replace('/', ' ')}")
    ((code, said),) = run_ranks(1, _train, config, None, stdout)
    assert code == 0
    assert losses(config) == losses(whole)
    why = "No space left on device" if stdout == "/dev/full" else "Broken pipe"
    assert said == f"standard output: {why}; training goes on without it\n"
    assert json.loads((Path(config.log.run_dir) / "starts.jsonl").read_text())["step"] == 0
