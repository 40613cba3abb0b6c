"""A run that branches off another one's checkpoint writes the losses of one that was never cut, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.checkpoint.store import complete_checkpoints, step_of
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.train.resume import find_resume_point
from tests.distributed.runs import losses, records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed
LAYOUT, BRANCH, SHORT, LONG, DECAY = "ep2", 7, 10, 16, 3


def wsd_run(directory: Path, name: str, steps: int, **checkpoint: object) -> RunConfig:
    """Warm-up, peak, and a linear decay over the last steps."""
    optim = {"schedule": "wsd", "warmup_steps": 2, "decay_steps": DECAY}
    train = {"steps": steps, "eval_interval": 0}
    model = {"hidden_dropout": 0.1}  # random streams go on too
    return text_run(LAYOUT, directory, name, train=train, optim=optim, model=model, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """The longest run of a schedule, with a checkpoint where a shorter one begins to decay."""
    directory = tmp_path_factory.mktemp("branches")
    config = wsd_run(directory, "long", LONG, save_interval=2, keep=1, save_at=(BRANCH,))
    assert train_on_ranks(LAYOUT, config) == [0, 0]
    return directory, config


def branch_of(config: RunConfig) -> str:
    """The checkpoint to branch off."""
    return str(checkpoints_dir(config.log.run_dir) / f"step_{BRANCH:08d}")


def test_the_step_to_branch_off_is_kept(long: tuple[Path, RunConfig]) -> None:
    kept = [step_of(path) for path in complete_checkpoints(checkpoints_dir(long[1].log.run_dir))]
    assert kept == [BRANCH, LONG]


def test_a_branch_has_the_losses_of_a_run_of_its_own(long: tuple[Path, RunConfig]) -> None:
    directory, config = long
    alone, branch = (wsd_run(directory, name, SHORT) for name in ("alone", "branch"))
    branch = replace(branch, checkpoint=replace(branch.checkpoint, branch_from=branch_of(config), save_interval=1))
    assert train_on_ranks(LAYOUT, alone) == [0, 0]
    assert losses(alone)[:BRANCH] == losses(config)[:BRANCH]
    # Cut after a step of its own: it goes on from its own checkpoint.
    cut = replace(branch, train=replace(branch.train, stop_after=BRANCH + 1))
    assert train_on_ranks(LAYOUT, cut) == [0, 0]
    assert train_on_ranks(LAYOUT, branch) == [0, 0]
    assert [record["step"] for record in records(branch)] == list(range(BRANCH + 1, SHORT + 1))
    assert losses(branch) == losses(alone)[BRANCH:]
    assert losses(branch) != losses(config)[BRANCH:SHORT]


def test_what_a_resumed_run_may_not_change_a_branch_may_not(long: tuple[Path, RunConfig]) -> None:
    directory, config = long
    branch = wsd_run(directory, "other", SHORT, branch_from=branch_of(config))
    point = find_resume_point(branch)
    assert point is not None
    assert (point.branched, point.manifest.step, set(point.changes)) == (True, BRANCH, {"train.steps"})
    for changed in ({"seed": 2}, {"steps": BRANCH - 1}):
        with pytest.raises(ConfigError):
            find_resume_point(replace(branch, train=replace(branch.train, **changed)))
