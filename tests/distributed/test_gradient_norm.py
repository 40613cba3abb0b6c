"""The gradient norm, which stays on the device, is the one that Megatron would have read back."""

from __future__ import annotations

import pytest

from altup_moe.bench.gpu.stepped import batches
from altup_moe.config import RunConfig
from altup_moe.parallel.topology import topology
from altup_moe.train.engine import build_engine
from altup_moe.train.step import train_step
from tests.distributed.cases import small
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

WAYS = {
    "experts": (small("one"), 1),
    "bf16": (small("one", train={"precision": "bf16"}), 1),
    "no experts": (small("one", moe={"num_experts": 0}), 1),
    "expert parallel": (small("ep2"), 2),
    "ZeRO-1": (small("ep2", parallel={"distributed_optimizer": True}), 2),
    "pipeline": (small("pp2"), 2),
    "tensor parallel": (small("tp2-ep2"), 2),
}
"""Name -> (run, ranks)."""


def _norms(config: RunConfig) -> list[tuple[float, float]]:
    """(ours, Megatron's) of two steps."""
    found = []
    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        for step in range(2):
            theirs: list[float] = []
            result = train_step(
                engine,
                batches(config, step, topo),
                config,
                topo,
                before_update=lambda told=theirs: told.append(float(engine.optimizer.get_grad_norm())),
            )
            found.append((result.grad_norm, *theirs))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_norm_is_megatrons(way: str) -> None:
    config, ranks = WAYS[way]
    for told in run_ranks(ranks, _norms, config):
        for ours, theirs in told:
            assert ours > 0.01
            assert ours == pytest.approx(theirs, rel=1e-15, abs=0.0)
