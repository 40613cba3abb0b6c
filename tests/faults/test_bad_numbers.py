"""Numbers that go bad in a run on two ranks: what ends, what is left out, what is gone back to, and exact resumes.

The samples themselves are spoiled, by number, so that who passes over them meets nothing.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint.manifest import read_manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import DataError, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.exit_codes import EXIT_DIVERGED, EXIT_USER_ERROR
from altup_moe.config.run_directory import checkpoints_dir
from tests.distributed.cases import with_long, world_size
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run

pytestmark = pytest.mark.distributed

Saw = Callable[[float, int, str], None]
BATCH = 8
SPIKE, STEPS = 10, 14
"""The step whose samples are labelled with a rare token, and the steps of a run."""
GUARD = {"spike_sigma": 6.0, "spike_window": 6}


@dataclass(frozen=True)
class Spoiled:
    """Samples of which some are spoiled. ``shift``: (from, by): samples from a number on are later ones instead."""

    samples: Any
    undefined: range = range(0)
    rare: range = range(0)
    shift: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        number += self.shift[1] if number >= self.shift[0] else 0
        sample = dict(self.samples[number])
        if number in self.undefined:
            sample["loss_mask"] = sample["loss_mask"] * torch.nan
        if number in self.rare:
            sample["labels"] = torch.full_like(sample["labels"], 319)
        return sample


@dataclass(frozen=True)
class Fault:
    """How `Spoiled` is made."""

    fields: dict[str, Any] = field(default_factory=dict)


def steps_of(first: int, last: int) -> range:
    """Samples of steps, if none was passed over."""
    return range((first - 1) * BATCH, last * BATCH)


def _train(config: RunConfig, fault: Fault) -> tuple[int, str, str]:
    from altup_moe.train import run
    from altup_moe.train.loop import train

    real = run.run_samples

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        samples = real(*args, **kwargs)
        return replace(samples, train=Spoiled(samples.train, **fault.fields))

    check_config(config, torch.distributed.get_world_size())
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(run, "run_samples", spoiled),
    ):
        return train(config), out.getvalue(), err.getvalue()


def spoiled_run(layout: str, config: RunConfig, **fields: Any) -> tuple[list[int], list[str], list[str]]:
    """(exit code of every rank, rank 0's lines on stdout, the program's own of all ranks on stderr)."""
    found = run_ranks(world_size(layout), _train, config, Fault(fields))
    errors = "".join(err for _, _, err in found).splitlines()
    own = [line for line in errors if line.startswith("altup-moe: ")]
    return [code for code, _, _ in found], found[0][1].splitlines(), own


def config_of(layout: str, directory: Path, name: str, **sections: dict) -> RunConfig:
    train = {"eval_interval": 0, "global_batch_size": BATCH, **sections.pop("train", {})}
    checkpoint = {"save_interval": 2, **sections.pop("checkpoint", {})}
    return text_run(layout, directory, name, train=train, checkpoint=checkpoint, **sections)


def names(config: RunConfig) -> set[str]:
    return {path.name for path in checkpoints_dir(config.log.run_dir).glob("step_*")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numbers")


@pytest.mark.fault("nan-loss")
def test_a_loss_that_is_undefined_for_good_ends_the_run_before_the_first_skip(directory: Path, saw: Saw) -> None:
    whole = config_of("dp2", directory, "whole", train={"steps": STEPS})
    cut = config_of("dp2", directory, "cut", train={"steps": STEPS, "max_skipped": 3}, checkpoint={"keep": 1})
    assert spoiled_run("dp2", whole)[0] == [0, 0]
    # Step 8 is saved, and step 9 is the first that is skipped: 6 is the last that a good step has followed. By the end
    # step 10, which was skipped, is saved too.
    for _ in range(2):
        began = time.monotonic()
        codes, lines, errors = spoiled_run("dp2", cut, undefined=steps_of(9, 99))
        assert codes == [EXIT_DIVERGED] * 2
        assert len(errors) == 1
        saw(time.monotonic() - began, codes[0], errors[0])
        assert "steps 9 to 11 skipped, train.max_skipped 3" in errors[0]
        assert "its loss is nan" in errors[0]
        assert "nothing was saved, the latest checkpoint is step_00000006" in errors[0]
        assert [line for line in lines if "is skipped" in line] == [
            f"step {step} is skipped: its loss is nan" for step in (9, 10, 11)
        ]
        latest = latest_checkpoint(cut.log.run_dir)
        assert latest is not None
        assert latest.name == "step_00000006"
        assert names(cut) == {"step_00000006", "step_00000010.diverged"}
        with Checkpoint(latest) as checkpoint:
            checkpoint.verify()
    assert spoiled_run("dp2", cut)[0] == [0, 0]
    assert losses(cut) == losses(whole)


def test_skips_in_a_row_are_counted_across_a_resume_and_begin_anew_after_a_good_step(directory: Path) -> None:
    config = config_of("dp2", directory, "row", train={"steps": STEPS, "max_skipped": 3, "stop_after": 6})
    undefined = [*steps_of(2, 3), *steps_of(5, 7)]
    assert spoiled_run("dp2", config, undefined=undefined)[0] == [0, 0]
    manifest = read_manifest(checkpoints_dir(config.log.run_dir) / "step_00000006")
    assert (manifest.skipped_steps, manifest.guards) == (4, {"skipped_in_row": 2, "losses": [], "norms": []})
    on = replace(config, train=replace(config.train, stop_after=None))
    codes, _, errors = spoiled_run("dp2", on, undefined=undefined)
    assert codes == [EXIT_DIVERGED] * 2
    assert "steps 5 to 7 skipped" in errors[0]
    assert "the latest checkpoint is step_00000002" in errors[0]
    never = replace(on, train=replace(on.train, max_skipped=None))
    assert spoiled_run("dp2", never, undefined=undefined)[0] == [0, 0]
    assert records(never)[-1]["skipped_steps"] == 5


def spikes(layout: str, directory: Path, name: str, on_spike: str, **train: Any) -> RunConfig:
    return config_of(layout, directory, name, train={**GUARD, "on_spike": on_spike, "steps": STEPS, **train})


def test_a_spike_is_skipped_also_by_a_run_that_has_just_resumed(directory: Path) -> None:
    whole, cut = (spikes("dp2", directory, f"skip-{name}", "skip") for name in ("whole", "cut"))
    rare = steps_of(SPIKE, SPIKE)
    codes, lines, _ = spoiled_run("dp2", whole, rare=rare)
    assert codes == [0, 0]
    (line,) = [line for line in lines if "is skipped" in line]
    assert line.startswith(f"step {SPIKE} is skipped: ")
    assert "sigma above" in line
    skipped = [record["skipped_steps"] for record in records(whole)]
    assert skipped == [0] * (SPIKE - 1) + [1] * (STEPS + 1 - SPIKE)
    # The window is the manifest's: without it there would be too few steps to judge by.
    for stop in (SPIKE - 1, SPIKE + 1, None):
        assert spoiled_run("dp2", replace(cut, train=replace(cut.train, stop_after=stop)), rare=rare)[0] == [0, 0]
    assert losses(cut) == losses(whole)
    # With the guard off the same step is taken.
    off = config_of("dp2", directory, "off", train={"steps": STEPS, "stop_after": SPIKE + 1})
    assert spoiled_run("dp2", off, rare=rare)[0] == [0, 0]
    assert losses(off)[:SPIKE] == losses(whole)[:SPIKE]
    assert losses(off)[SPIKE] != losses(whole)[SPIKE]


@pytest.mark.fault("loss-spike")
def test_a_spike_stops_the_run(directory: Path, saw: Saw) -> None:
    config = spikes("dp2", directory, "stop", "stop")
    began = time.monotonic()
    codes, _, errors = spoiled_run("dp2", config, rare=steps_of(SPIKE, SPIKE))
    assert codes == [EXIT_DIVERGED] * 2
    (error,) = errors
    saw(time.monotonic() - began, codes[0], error)
    assert f"step {SPIKE} skipped, train.on_spike stop: " in error
    assert "the latest checkpoint is step_00000008" in error
    assert len(records(config)) == SPIKE


# What a resume reads of a rollback is the manifest's, whatever the layout.
@pytest.mark.parametrize(("layout", "resumed"), with_long([("ep2", True), ("tp2-ep2", False)], [("tp2-ep2", True)]))
def test_a_rollback_passes_over_samples_and_resumes_exactly(layout: str, resumed: bool, directory: Path) -> None:
    """The curve is that of a run whose samples after the checkpoint were later ones from the start."""
    whole, cut, clean = (
        spikes(layout, directory, f"{layout}-{resumed}-{name}", "rollback") for name in ("whole", "cut", "clean")
    )
    # After the first rollback, to step 8, the samples of step 11 come at step 9; those of step 12 are spoiled again.
    rare = [*steps_of(SPIKE, SPIKE), *steps_of(SPIKE + 2, SPIKE + 2)]
    codes, lines, errors = spoiled_run(layout, whole, rare=rare)
    assert (codes, errors) == ([0, 0], [])
    told = [line for line in lines if "back to" in line]
    assert len(told) == 2
    assert f"step {SPIKE} was a spike (" in told[0]
    assert told[0].endswith(f"back to step_00000008; samples {8 * BATCH} to {SPIKE * BATCH - 1} are passed over")
    assert told[1].endswith(f"back to step_00000008; samples {8 * BATCH} to {(SPIKE + 2) * BATCH - 1} are passed over")
    manifest = read_manifest(checkpoints_dir(whole.log.run_dir) / f"step_{STEPS:08d}")
    assert manifest.passed_over == [{"step": 8, "samples": [8 * BATCH, (SPIKE + 2) * BATCH]}]
    assert manifest.consumed_samples == STEPS * BATCH + 4 * BATCH
    assert [record["consumed_samples"] for record in records(whole)] == [
        (step if step <= 8 else step + 4) * BATCH for step in range(1, STEPS + 1)
    ]
    assert names(whole) == {"step_00000012", "step_00000014"}

    assert spoiled_run(layout, clean, shift=(8 * BATCH, 4 * BATCH))[0] == [0, 0]
    assert losses(whole) == losses(clean)

    for stop in (SPIKE - 1, SPIKE, None) if resumed else ():
        assert spoiled_run(layout, replace(cut, train=replace(cut.train, stop_after=stop)), rare=rare)[0] == [0, 0]
    if resumed:
        assert losses(cut) == losses(whole)
        assert [record["step"] for record in records(cut)] == list(range(1, STEPS + 1))


def test_a_run_that_goes_back_to_one_checkpoint_again_and_again_ends(directory: Path) -> None:
    config = spikes("ep2", directory, "again", "rollback", max_skipped=2)
    codes, lines, errors = spoiled_run("ep2", config, rare=steps_of(SPIKE, 99))
    assert codes == [EXIT_DIVERGED] * 2
    assert sum("back to step_00000008" in line for line in lines) == 2
    assert "2 times the run went back to step_00000008 (train.max_skipped)" in errors[0]


def _train_on_damaged_file(config: RunConfig, number: int) -> tuple[int, str]:
    """Train while an id in the middle of a sample becomes none, before anybody reads it for step 2.

    Returns:
        (its byte, what was raised).
    """
    from altup_moe.train import run
    from altup_moe.train.loop import train

    real, at = run._own_batches, [0]

    def damaged(this: Any, ahead: Any) -> Any:
        # The samples of step 2 are read during step 1.
        if this.step == 0:
            samples = this.samples.train
            torch.distributed.barrier()
            windows = samples.windows if hasattr(samples, "windows") else samples.samples.windows
            first, ids = windows.pieces(number)[0]
            at[0] = (first + len(ids) // 2) * ids.dtype.itemsize
            if this.topology.is_first:
                with windows.file.open("r+b") as file:
                    file.seek(at[0])
                    file.write((60_000).to_bytes(2, "little"))
            torch.distributed.barrier()
        return real(this, ahead)

    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(run, "_own_batches", damaged):
        try:
            return train(config), "trained"
        except DataError as error:
            return at[0], str(error)


@pytest.mark.fault("token-range")
@pytest.mark.parametrize("layout", ["dp2", "tp2-ep2"])
def test_an_id_that_is_no_token_ends_all_ranks_with_its_place(layout: str, directory: Path, saw: Saw) -> None:
    """A vocabulary cut over tensor ranks would take it silently. Sample 11 is data rank 1's, and of step 2."""
    config = config_of(layout, directory, f"{layout}-id", train={"steps": 4})
    config = replace(config, data=replace(config.data, cache=str(directory / f"{layout}-cache")))
    began = time.monotonic()
    found = run_ranks(2, _train_on_damaged_file, config, 11)
    assert found[0] == found[1]
    byte, error = found[0]
    # A UserError, of which the command line makes this code.
    saw(time.monotonic() - began, EXIT_USER_ERROR, f"altup-moe: error: {error}")
    assert f".bin at byte {byte}: token id 60000 is outside the vocabulary of 320 (sample 11, token " in error
    assert len(records(config)) == 1


def test_a_router_alarm_is_a_line_and_a_metric(directory: Path) -> None:
    moe = {"alarm_expert_share": 0.5, "alarm_dropped_share": 0.01, "alarm_steps": 2, "capacity_factor": 0.5}
    alarmed, quiet = (
        config_of("ep2", directory, f"alarms-{bool(keys)}", train={"steps": 3}, moe={"capacity_factor": 0.5, **keys})
        for keys in (moe, {})
    )
    codes, lines, _ = spoiled_run("ep2", alarmed)
    assert codes == [0, 0]
    told = [line for line in lines if "router alarm" in line]
    assert any(line.startswith("step 2: router alarm: layer 1 drops ") for line in told)
    assert any("layer 1, expert " in line and "of the tokens (moe.alarm_expert_share 0.5)" in line for line in told)
    counts = [record["router_alarms"] for record in records(alarmed)]
    assert counts[0] == 0
    assert counts[1] == len([line for line in told if line.startswith("step 2")])
    assert spoiled_run("ep2", quiet)[0] == [0, 0]
    assert losses(quiet) == losses(alarmed)
    assert "router_alarms" not in records(quiet)[0]
