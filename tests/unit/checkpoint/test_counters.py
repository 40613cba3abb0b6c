"""Counters of a manifest that cannot belong together are refused, whatever the hashes say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.counters import consumed, counter_problem
from altup_moe.checkpoint.manifest import MANIFEST
from altup_moe.checkpoint.store import find_checkpoint
from tests.unit.checkpoint.damaged import content, refused, seal
from tests.unit.checkpoint.models import CONFIG, head_of

HUGE = 10**15
NAME = "step_00000003"


def says(**changes: object) -> str | None:
    return counter_problem(replace(head_of(), **changes), CONFIG, NAME)  # type: ignore[arg-type]


LIES: dict[str, tuple[dict[str, object], str]] = {
    "step": ({"step": HUGE}, f"is of step {HUGE}; the directory's name says 3"),
    "scheduler": ({"scheduler_steps": HUGE}, f"has {HUGE} steps of the learning-rate schedule after 3 steps"),
    "updates": ({"optimizer_steps": 2}, "has 2 updates of the optimizer; 3 steps without 0 are 3"),
    "no updates": ({"optimizer_steps": 0}, "has 0 updates of the optimizer; 3 steps without 0 are 3"),
    "samples": ({"consumed_samples": 7}, "has 7 consumed samples; 3 steps"),
    "skipped": ({"skipped_steps": 4}, "has 4 skipped steps of 3"),
    "skipped, not taken off": ({"skipped_steps": 1}, "3 steps without 1 are 2"),
    "no ranks": ({"world_size": 0}, "is of 0 ranks"),
    "absurd ranks": ({"world_size": HUGE}, f"is of {HUGE} ranks"),
}


@pytest.mark.parametrize("name", LIES)
def test_one_line_with_hashes_that_fit(name: str, spoilt: Path) -> None:
    changes, line = LIES[name]
    directory = find_checkpoint(spoilt)
    manifest = content(directory)
    manifest.update(changes)
    seal(directory, manifest)
    refused(spoilt, MANIFEST, line)


def test_a_renamed_directory(spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    directory.rename(directory.with_name("step_00000007"))
    (directory.parent / "latest").write_text("step_00000007\n")
    refused(spoilt, MANIFEST, "is of step 3; the directory's name says 7")


def test_a_linked_directory(spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    moved = directory.rename(spoilt / "elsewhere")
    directory.symlink_to(moved)
    refused(spoilt, NAME, "is a symbolic link")


def _world(manifest: dict[str, Any]) -> None:
    manifest["config"]["parallel"].update(tensor=2)


def _stream(manifest: dict[str, Any]) -> None:
    manifest["tensors"]["rng/7/cpu"] = manifest["tensors"].pop("rng/0/cpu")


@pytest.mark.parametrize(
    ("change", "line"), [(_world, "is of 1 ranks; tensor 2"), (_stream, "has rng/7/cpu of 1 ranks")]
)
def test_ranks_that_the_layout_has_not(change: Callable[[dict[str, Any]], None], line: str, spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    manifest = content(directory)
    change(manifest)
    seal(directory, manifest)
    refused(spoilt, MANIFEST, line)


def test_what_a_run_may_have() -> None:
    assert says() is None
    assert says(skipped_steps=1, optimizer_steps=2) is None
    batch = CONFIG.train.global_batch_size
    passed_over = [{"step": 2, "samples": [10, 14]}]
    assert says(passed_over=passed_over, consumed_samples=3 * batch + 4) is None
    assert "consumed samples" in str(says(passed_over=passed_over))
    # Without state of an optimizer (a grown or imported model) nothing has been counted, or all that the source had.
    assert says(optimizer_steps=0) is None
    # A tool that writes another batch size into a checkpoint says so in it.
    other = [{"step": 3, "keys": {"train.global_batch_size": [64, batch]}}]
    assert says(changes=other, consumed_samples=192) is None
    assert consumed(replace(head_of(), changes=other), CONFIG) is None


@pytest.mark.parametrize("name", ["step_00000003.partial", "step_00000003.replaced", "best", "step_3"])
def test_names_of_directories(name: str) -> None:
    assert counter_problem(head_of(), CONFIG, name) is None


def test_more_steps_than_the_run_has() -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, steps=2))
    assert counter_problem(head_of(), config, NAME) == "is of step 3; its run has 2 (train.steps)"
