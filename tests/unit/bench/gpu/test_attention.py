"""The check of attention's flash kernel: right as it is, and wrong where it is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from altup_moe.bench.gpu import attention
from altup_moe.bench.gpu.sizes import REHEARSAL
from altup_moe.parallel.topology import Topology


def test_the_flash_kernel_is_chosen_and_right(alone: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = attention.compared("", REHEARSAL.small, 64, 2, alone)
    assert [figure.met for figure in figures] == [True] * 4
    real = attention._in_fp64
    monkeypatch.setattr(attention, "_in_fp64", lambda scale, given: real(0.1, given))
    figures = attention.compared("", REHEARSAL.small, 64, 2, alone)
    assert [figure.met for figure in figures] == [False, True, True, True]


def test_a_choice_that_is_another_kernel_is_told(alone: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention._run

    def run(core: Any, given: Any, forced: bool) -> Any:
        values, _ = real(core, given, forced)
        return values if forced else [2 * value for value in values], {"aten._scaled_dot_product_cudnn_attention"}

    monkeypatch.setattr(attention, "_run", run)
    figures = attention.compared("", REHEARSAL.small, 128, 4, alone)
    assert [figure.met for figure in figures] == [True, False, False, False]
