"""Where a training step makes the host wait for a GPU: the exact places, by layout. A new one fails here.

Each is in `bench.gpu.waits.KNOWN` with its reason; docs/guides/gpu_check.md has the same table.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.bench.gpu.waits import KNOWN, waits_of_a_step
from altup_moe.config import AltUpConfig, OverlapConfig, RunConfig
from altup_moe.moe.grouped import How
from tests.distributed.cases import small
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

READ = "altup_moe/train/step.py:_read"
IDS = "altup_moe/train/step.py:_label_weight"
STOP = "altup_moe/parallel/control_collectives.py:any_rank"
ROUTES = "altup_moe/moe/megatron_backend.py:_maybe_dtoh_and_synchronize"
SIZES = "altup_moe/train/adafactor.py:_sizes"
SEVERAL = {READ: 1, IDS: 1, STOP: 1}
LAYERS = 2
"""Layers with experts in `cases.small`; of its four, every second one."""
MICRO_BATCHES = 4
OVER_STEPS = {"score_function": "sigmoid", "load_balancing_type": "global_aux_loss"}


def torch_experts(layout: str, **sections: dict) -> RunConfig:
    """The small run with the backend `torch`."""
    config = small(layout, **sections)
    return replace(config, moe=replace(config.moe, backend="torch"))


def plain() -> RunConfig:
    config = small("one", moe={"num_experts": 0})
    return replace(config, altup=AltUpConfig())


def all_on() -> RunConfig:
    config = torch_experts("ep2", train={"recompute": "full"}, parallel={"distributed_optimizer": True})
    return replace(config, overlap=OverlapConfig(microbatch_halves=True))


def lopsided(layout: str) -> RunConfig:
    """Capacity, biases and loads of a step: what a router has besides."""
    return torch_experts(layout, moe={"capacity_factor": 1.0, "expert_bias_update_rate": 0.1, **OVER_STEPS})


CASES: dict[str, tuple[RunConfig, How | None, int, dict[str, int]]] = {
    "K = 1": (plain(), None, 1, {READ: 1}),
    "K = 2, loop": (torch_experts("one"), "loop", 1, {READ: 1, ROUTES: LAYERS * MICRO_BATCHES}),
    "K = 2, grouped": (torch_experts("one", train={"precision": "bf16"}), "grouped_mm", 1, {READ: 1}),
    "K = 2, megatron": (small("one"), None, 1, {READ: 1, ROUTES: LAYERS * MICRO_BATCHES}),
    "expert parallel, loop": (torch_experts("ep2"), "loop", 2, {**SEVERAL, ROUTES: LAYERS * 2}),
    "expert parallel, grouped": (
        torch_experts("ep2", train={"precision": "bf16"}),
        "grouped_mm",
        2,
        {**SEVERAL, ROUTES: LAYERS * 2},
    ),
    "halves, recomputation, ZeRO-1": (all_on(), None, 2, {**SEVERAL, ROUTES: LAYERS * 2 * 2 * 2}),
    "tensor parallel": (torch_experts("tp2-ep2"), None, 2, {**SEVERAL, ROUTES: LAYERS * MICRO_BATCHES}),
    "context parallel": (torch_experts("cp2"), None, 2, {**SEVERAL, ROUTES: LAYERS * MICRO_BATCHES}),
    "pipeline": (torch_experts("pp2"), None, 2, {**SEVERAL, ROUTES: MICRO_BATCHES}),
    "capacity, loads of a step": (lopsided("one"), None, 1, {READ: 1, ROUTES: LAYERS * MICRO_BATCHES}),
    "Adafactor": (small("one", optim={"optimizer": "adafactor"}, moe={"num_experts": 0}), None, 1, {READ: 1, SIZES: 1}),
}


def _count(config: RunConfig, how: How | None) -> Counter[str]:
    found: Counter[str] = Counter()
    for place, times in waits_of_a_step(config, how).count.items():
        found[place.where] += times
        if place.where not in KNOWN:
            found[f"in {place.through}"] += times
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_where_it_must(name: str) -> None:
    config, how, ranks, expected = CASES[name]
    assert run_ranks(ranks, _count, config, how) == [expected] * ranks


def test_every_known_place_is_met_and_documented() -> None:
    met = {place for *_, expected in CASES.values() for place in expected}
    assert met == set(KNOWN)
    page = (Path(__file__).parents[2] / "docs" / "guides" / "gpu_check.md").read_text(encoding="utf-8")
    for place, (times, why) in KNOWN.items():
        file, _, function = place.partition(":")
        assert f"| `{function}` in `{file}` | {times} | {why} |" in page, place
