"""The encoder-decoder under every layout it has: gradients against the reference, losses of 20 steps, exact resumption."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.distributed.cases import LAYOUTS, small_t5, world_size
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

WIDE = {"width": 4, "recycled": False, "cross_attention": "wide"}
STREAMS = {
    "plain": {"width": 1},
    "recycled": {"width": 2},
    "recycled, wide context": {"width": 2, "cross_attention": "wide"},
    "wide tables, narrow context": {"width": 2, "recycled": False, "variant": "round_robin"},
    "wide": WIDE,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_one_rank(stream: str) -> None:
    assert_parity(small_t5("one", altup=STREAMS[stream]), 1)


@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "tp2-ep2"])
@pytest.mark.parametrize("stream", ["plain", "wide"])
def test_layouts(layout: str, stream: str) -> None:
    assert_parity(small_t5(layout, altup=STREAMS[stream]), world_size(layout))
