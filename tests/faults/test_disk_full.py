"""One rank's disk is full: all ranks agree that the save failed, and training goes on or stops as configured."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.checkpoint.store import complete_checkpoints, latest_checkpoint
from altup_moe.config import RunConfig
from altup_moe.config.run_directory import checkpoints_dir
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed


def _train_on_a_full_disk(
    config: RunConfig, full_steps: list[int], rank: int, printed: Path | None = None
) -> int | str:
    """On a rank: train; files of the named steps do not fit on `rank`'s disk. Returns the exit code or the error.

    Rank 0 adds what it has printed to a file, if one is named.
    """
    import contextlib
    import os

    from altup_moe.checkpoint import write as module
    from altup_moe.config import UserError
    from altup_moe.config.checks import check_config
    from altup_moe.train.loop import train

    check_config(config, 2)
    write = module.write_file

    def full(path: Path, *args: object) -> object:
        written = write(path, *args)
        if os.environ["RANK"] == str(rank) and any(f"step_{step:08d}" in str(path) for step in full_steps):
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    module.write_file = full
    shown = printed if printed is not None and os.environ["RANK"] == "0" else Path(os.devnull)
    try:
        with open(shown, "a") as file, contextlib.redirect_stdout(file):
            return train(config)
    except UserError as error:
        return str(error)
    finally:
        module.write_file = write


def _config(directory: Path, name: str, **checkpoint: object) -> RunConfig:
    config = text_run("ep2", directory, name, train={"steps": 8})
    return replace(config, checkpoint=replace(config.checkpoint, save_interval=2, keep=9, **checkpoint))


def _saved(config: RunConfig) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in complete_checkpoints(checkpoints_dir(config.log.run_dir))]


@pytest.mark.fault("full-disk-saving")
@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on(asynchronous: bool, tmp_path: Path, saw: Callable[[float, int, str], None]) -> None:
    whole = _config(tmp_path, "whole")
    assert train_on_ranks("ep2", whole) == [0, 0]
    config, printed = _config(tmp_path, "full", asynchronous=asynchronous), tmp_path / "printed.txt"
    began = time.monotonic()
    assert run_ranks(2, _train_on_a_full_disk, config, [4], 1, printed) == [0, 0]
    (said,) = [line for line in printed.read_text().splitlines() if "was not saved" in line]
    assert said.endswith("training goes on, the latest checkpoint stays")
    saw(time.monotonic() - began, 0, said)
    assert _saved(config) == [2, 6, 8]
    assert losses(config) == losses(whole)
    assert not list(checkpoints_dir(config.log.run_dir).glob("*.partial"))


def test_training_stops_where_asked_to(tmp_path: Path) -> None:
    config = _config(tmp_path, "stop", on_failure="stop", asynchronous=False)
    answers = run_ranks(2, _train_on_a_full_disk, config, [4], 1)
    assert answers[0] == answers[1]
    assert "checkpoint of step 4 was not saved: rank 1: " in str(answers[0])
    assert "No space left on device" in str(answers[0])
    assert latest_checkpoint(config.log.run_dir).name == "step_00000002"
    # With space again the same command goes on from there.
    assert train_on_ranks("ep2", config) == [0, 0]
    assert [record["step"] for record in records(config)] == list(range(1, 9))


def test_a_run_never_ends_well_without_its_last_checkpoint(tmp_path: Path) -> None:
    config = _config(tmp_path, "last")
    answers = run_ranks(2, _train_on_a_full_disk, config, [8], 0)
    assert answers[0] == answers[1]
    assert "checkpoint of step 8 was not saved: rank 0: " in str(answers[0])
    assert _saved(config) == [2, 4, 6]
