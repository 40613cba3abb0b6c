"""Stopping in good order: signals are noted while open, act as usual afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.train.stop_signal import StopSignal

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def noted() -> list[int]:
    """Handlers that note what reaches them, as if they were the process's own."""
    reached: list[int] = []
    before = {number: signal.signal(number, lambda n, frame: reached.append(n)) for number in SIGNALS}
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_goes_no_further(number: int, noted: list[int]) -> None:
    with StopSignal() as stop:
        assert not stop.caught
        os.kill(os.getpid(), number)
        assert stop.caught
    assert noted == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_one_acts_as_usual(number: int, noted: list[int]) -> None:
    with StopSignal() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.caught
    assert noted == [number]


def test_two_different_ones_are_both_noted(noted: list[int]) -> None:
    with StopSignal() as stop:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        assert stop.caught
    assert noted == []


@pytest.mark.parametrize("fails", [False, True])
def test_handlers_are_put_back(fails: bool, noted: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with StopSignal():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGTERM]


def test_the_exit_code_asks_to_try_again() -> None:
    assert EXIT_STOPPED == os.EX_TEMPFAIL
