"""Stopping in good order: signals are noted while open, act as usual afterwards."""

from __future__ import annotations

import os
import signal

import pytest

from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.train.stop_signal import TWICE_SECONDS, WARNING, StopSignal

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1]


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


class Clock:
    """Seconds that stand still unless they are set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("number", [n for n in SIGNALS if n != signal.SIGUSR1])
def test_a_second_one_acts_as_usual_once_it_is_no_echo(number: int, noted: list[int]) -> None:
    """srun signals every process of a step, and the launcher among them passes the same request on to its ranks."""
    clock = Clock()
    with StopSignal(clock=clock) as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.caught
        assert noted == []
        clock.now += TWICE_SECONDS
        os.kill(os.getpid(), number)
    assert noted == [number]


def test_a_warning_never_does_more_than_ask(noted: list[int]) -> None:
    clock = Clock()
    with StopSignal(clock=clock) as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            clock.now += 60
        assert stop.caught
    assert noted == []


def test_a_warning_before_the_run_is_known_inside_it(noted: list[int]) -> None:
    with StopSignal((WARNING,)) as early:
        with StopSignal() as stop:
            assert not stop.caught
        os.kill(os.getpid(), signal.SIGUSR1)
        assert early.caught
        with StopSignal() as stop:
            assert stop.caught
    assert noted == []


def test_what_is_told_too_late_does_not_change_the_exit_code(noted: list[int]) -> None:
    """The run has saved and its process is ending; its launcher's SIGTERM comes behind srun's SIGUSR1."""
    with StopSignal((WARNING,)), StopSignal():
        os.kill(os.getpid(), signal.SIGUSR1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert noted == [signal.SIGINT]


def test_a_ctrl_c_told_twice_is_one_request_also_once_the_run_has_saved(noted: list[int]) -> None:
    """A small run saves within the two seconds in which a second Ctrl-C is the first one told again."""
    clock = Clock()
    with StopSignal((WARNING,), clock):
        with StopSignal(clock=clock):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert noted == []
        clock.now += TWICE_SECONDS
        os.kill(os.getpid(), signal.SIGINT)
    assert noted == [signal.SIGINT]


def test_an_ignored_hangup_stays_ignored(noted: list[int]) -> None:
    """Under nohup a run outlives its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.caught
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


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
