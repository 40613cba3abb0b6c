"""Which block a layer computes on."""

from __future__ import annotations

from altup_moe.altup.shape import stream_width
from altup_moe.altup.variants import selected_block


def test_selected_block() -> None:
    assert [selected_block(layer, 4, "alternating") for layer in range(6)] == [0, 1, 2, 3, 0, 1]
    assert {selected_block(layer, 4, "same") for layer in range(6)} == {0}


def test_the_control_has_one_block() -> None:
    assert (stream_width(4, "altup"), stream_width(4, "sum")) == (4, 1)
