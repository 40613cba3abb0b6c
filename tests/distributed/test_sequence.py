"""Strided layers in every layout: gradients and losses equal the reference's, and every position but the last ones is
used."""

from __future__ import annotations

import pytest

from tests.distributed.cases import small, world_size
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

METHODS = ("altup", "stride_and_skip", "average_pool")
STRIDED = {"stride": 4, "layers": "1..-2"}


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2", "pp2", "pp2-vpp2", "ep2", "tp2-pp2-ep2"])
def test_layouts(layout: str, width: int) -> None:
    assert_parity(small(layout, altup={"width": width}, sequence=STRIDED), world_size(layout))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["tp2", "ep2"])
def test_methods(layout: str, method: str) -> None:
    assert_parity(small(layout, sequence={"stride": 4, "layers": "0..-1", "method": method}), world_size(layout))
