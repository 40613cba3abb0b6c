"""The deepspeed backend beside a deepspeed that was told of tensor parallelism."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from altup_moe.config import RunConfig
from tests.backends import usable
from tests.distributed.cases import LAYOUTS, small, world_size
from tests.distributed.gradients import layout_step, reference_step, worst_difference
from tests.distributed.ranks import run_fresh_ranks
from tests.distributed.test_gradients import TOLERANCE

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not usable("deepspeed"), reason="deepspeed is not installed"),
]


def _step(config: RunConfig) -> Any:
    from deepspeed.utils import groups

    # As `deepspeed.initialize(mpu=...)` leaves it: its MoE layer would now drop half of every rank's tokens.
    groups.mpu = SimpleNamespace(
        get_tensor_model_parallel_world_size=lambda: config.parallel.tensor,
        get_tensor_model_parallel_rank=lambda: 0,
    )
    return layout_step(config)


@pytest.mark.parametrize("layout", ["tp2", "tp2-ep1", "tp2-ep2"])
def test_no_tokens_are_dropped_as_copies(layout: str) -> None:
    config = small(layout, moe={"backend": "deepspeed", "layer_freq": 1})
    loss, expected = reference_step(small("one", moe={"layer_freq": 1}))
    ranks = run_fresh_ranks(world_size(layout), _step, config)
    assert all(got == pytest.approx(loss, rel=TOLERANCE) for got, _ in ranks)
    difference, where = worst_difference(expected, ranks)
    assert difference <= TOLERANCE, where
    assert LAYOUTS[layout].tensor == 2
