"""Any layout to any layout: gathered weights and moments are the same bytes, training goes on, no sample is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import RunConfig
from tests.checkpoints import stored_bytes
from tests.distributed.cases import LAYOUTS, with_long, world_size
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import give_checkpoint, load_and_save, losses, text_run, train_on_ranks

pytestmark = pytest.mark.distributed

SOURCE = "tp2-pp2-ep2"
CUT = 7
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"train": {"precision": "bf16"}},
    "dynamic": {"altup": {"variant": "dynamic"}},
    "mhc": {"altup": {"variant": "mhc", "level": "branch"}},
    "tied": {"model": {"share_embeddings_and_output_weights": True}, "altup": {"recycled": False}},
}
TARGETS = [
    ("one", False),
    ("dp2", True),
    ("dp2", False),
    ("pp2-vpp2", True),
    ("pp2-uneven", False),
    ("ep2", True),
    ("tp2", False),
    ("tp2-ep1", True),
    ("cp2", True),
    ("dp2-pp2", True),
    ("dp4-ep2-etp2", True),
    ("tp2-pp2-ep2", False),
]
"""(layout, distributed optimizer) that a checkpoint of `SOURCE` with the distributed optimizer is loaded under."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def source(directory: Path):
    """A run under SOURCE, saved at step CUT and trained on without a stop, by form; trained once."""
    known: dict[str, RunConfig] = {}

    def trained(form: str) -> RunConfig:
        if form not in known:
            # Only the run in fp32 is one to compare losses with.
            config = _run(SOURCE, directory, f"source-{form}", form, True, stop_after=None if form == "fp32" else CUT)
            config = replace(config, checkpoint=replace(config.checkpoint, save_interval=CUT, keep=9))
            assert set(train_on_ranks(SOURCE, config)) == {0}
            known[form] = config
        return known[form]

    return trained


def _run(layout: str, directory: Path, name: str, form: str, distributed: bool, **train: object) -> RunConfig:
    sections = {**FORMS[form], "parallel": {"distributed_optimizer": distributed}}
    sections["train"] = {**sections.get("train", {}), "steps": 12, **train}
    return text_run(layout, directory, name, **sections)


# Pairwise: every target, every form, and every form with and without the distributed optimizer. The rules that cut a
# tensor look at its name and the layout, not at the form; dtype and tables are the form's.
MOVES = [
    *(("fp32", *target) for target in TARGETS),
    ("bf16", "dp2", True),
    ("bf16", "tp2-pp2-ep2", False),
    ("tied", "pp2-uneven", False),
    ("tied", "tp2-ep1", True),
    ("dynamic", "pp2-vpp2", True),
    ("dynamic", "dp2", False),
]
MOVES_LONG = [
    ("bf16", "pp2-vpp2", True),
    ("bf16", "tp2", False),
    ("tied", "dp2-pp2", True),
    ("dynamic", "dp2", True),
]


@pytest.mark.parametrize(("form", "layout", "distributed"), with_long(MOVES, MOVES_LONG))
def test_gathered_tensors_are_the_same_bytes(
    layout: str, distributed: bool, form: str, directory: Path, source, tmp_path: Path
) -> None:
    target = _run(layout, tmp_path, "target", form, distributed)
    expected = stored_bytes(give_checkpoint(source(form), target, CUT))
    again = tmp_path / "again" / "checkpoints"
    run_ranks(world_size(layout), load_and_save, target, again)
    got = stored_bytes(find_checkpoint(tmp_path / "again"))
    assert got.keys() == expected.keys()
    assert [name for name in got if got[name] != expected[name]] == []
    # Not the trivial equality of zeros.
    assert all(any(value) for name, value in expected.items() if name.startswith("exp_avg"))


# Same bytes under every target is the test above; 5 more steps of each are not needed every time.
GO_ON = [target for target in TARGETS if target[0] in ("one", "cp2", "pp2-vpp2", "tp2-pp2-ep2", SOURCE)]


@pytest.mark.parametrize(("layout", "distributed"), with_long(GO_ON, [t for t in TARGETS if t not in GO_ON]))
def test_training_goes_on_under_another_layout(
    layout: str, distributed: bool, directory: Path, source, tmp_path: Path
) -> None:
    target = _run(layout, directory, f"on-{layout}-{distributed}", "fp32", distributed)
    give_checkpoint(source("fp32"), target, CUT)
    assert set(train_on_ranks(layout, target)) == {0}
    got, expected = losses(target), losses(source("fp32"))[CUT:]
    assert len(got) == 5
    assert got == pytest.approx(expected, rel=1e-4)
    if layout == SOURCE:
        # Without the distributed optimizer the same additions in another order: close, and not a copy of the file.
        assert got != expected or not distributed


def _record_samples(config: RunConfig) -> list[int]:
    """On a rank: train, and return the numbers of the training samples that were read here."""
    from altup_moe.train import run
    from tests.distributed.runs import train_quietly

    seen: list[int] = []
    opened = run.run_samples

    class Watched:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getitem__(self, number: int) -> Any:
            seen.append(number)
            return self.inner[number]

    def watched(*args: Any, **options: Any) -> Any:
        samples = opened(*args, **options)
        return replace(samples, train=Watched(samples.train))

    run.run_samples = watched
    try:
        train_quietly(config, config.parallel.data or 1)
    finally:
        run.run_samples = opened
    return seen


def _in_order(ranks: list[list[int]], data_ranks: int, micro_batch: int) -> Iterator[int]:
    """Samples as a step takes them: data ranks' micro-batches in turn."""
    turns = [[row[i : i + micro_batch] for i in range(0, len(row), micro_batch)] for row in ranks[:data_ranks]]
    for together in zip(*turns, strict=True):
        for part in together:
            yield from part


def test_no_sample_is_repeated_or_skipped(directory: Path) -> None:
    """One rank, then two, then four data-parallel ranks, and another micro-batch size."""
    plan = [("one", 1, 2, 4), ("dp2", 2, 2, 9), ("dp4-ep2-etp2", 4, 1, 12)]
    seen: list[int] = []
    for layout, data, micro_batch, stop in plan:
        config = text_run(layout, directory, "samples", train={"steps": 12, "stop_after": stop})
        config = replace(
            config,
            train=replace(config.train, micro_batch_size=micro_batch),
            parallel=replace(LAYOUTS[layout], data=data),
        )
        ranks = run_ranks(world_size(layout), _record_samples, config)
        seen += _in_order(ranks, data, micro_batch)
    assert seen == list(range(12 * 8))
