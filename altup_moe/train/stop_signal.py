"""Stopping in good order: a signal is noted, all ranks agree after the step, the run saves and exits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from altup_moe.config.interrupts import Interrupts
from altup_moe.train.second_signal import GRACE, SecondSignal, end_by

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
WARNING = signal.SIGUSR1
"""SLURM's warning before the time limit, which srun gives to every process of a step."""
TWICE_SECONDS = 2.0
"""A signal that comes again so soon is one request told twice: srun tells the rank, and so does its launcher."""


class StopSignal:
    """Notes SIGTERM, SIGINT, SIGHUP (unless it is ignored, as under nohup) and SIGUSR1 while open.

    A second one of the same kind acts as usual once `TWICE_SECONDS` have passed since the first; SIGUSR1 never
    does more than ask. Where the main thread waits in C++ and cannot act, the second one ends the process by itself,
    a second later. One that opens inside another, the command's, knows what that one has noted; once it has noted
    a signal itself, the command is about to end, and what other ways tell too late is ignored from then on.

    Args:
        signals: which ones. clock: seconds.
    Raises:
        KeyboardInterrupt: on entering, a library has swallowed an earlier Ctrl-C. No handler is changed then.
    """

    def __init__(
        self, signals: tuple[signal.Signals, ...] = SIGNALS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.caught = False
        self._signals, self._clock = signals, clock
        self._first: dict[int, float] = {}
        self._previous: dict[int, object] = {}
        self._outer: StopSignal | None = None
        self._ending = False
        self._heard: dict[int, float] = {}
        self._acted = threading.Event()
        self._second = SecondSignal(self._hear)

    def __enter__(self) -> StopSignal:
        interrupts = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if isinstance(interrupts, Interrupts) and interrupts.noted:
            raise KeyboardInterrupt
        for number in self._signals:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            previous = signal.signal(number, self._note)
            self._previous[number] = previous
            outer = getattr(previous, "__self__", None)
            if isinstance(outer, StopSignal):
                self._outer, self.caught = outer, self.caught or outer.caught
        self._second.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._second.close()
        self._acted.set()
        if self._outer is not None and self.caught:
            self._ending = self._outer._ending = True
        for number, previous in self._previous.items():
            late = self._late if number == signal.SIGINT else signal.SIG_IGN
            signal.signal(number, late if self._ending else previous)  # type: ignore[arg-type]

    def _late(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C while the command ends: the request that was heard told twice, or one to end at once."""
        if self._clock() - self._first.get(number, -TWICE_SECONDS) < TWICE_SECONDS:
            return
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        signal.raise_signal(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        now = self._clock()
        if number == WARNING or now - self._first.setdefault(number, now) < TWICE_SECONDS:
            return
        self._acted.set()
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        signal.raise_signal(number)

    def _hear(self, number: int) -> None:
        """In a thread: a signal has come, whether or not the main thread can note it."""
        now = self._clock()
        if number == WARNING or number not in self._previous:
            return
        if now - self._heard.setdefault(number, now) < TWICE_SECONDS:
            return
        if not self._acted.wait(GRACE):
            end_by(number)
