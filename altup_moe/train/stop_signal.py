"""Stopping in good order: a signal is noted, all ranks agree after the step, the run saves and exits."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
WARNING = signal.SIGUSR1
"""SLURM's warning before the time limit, which srun gives to every process of a step."""
TWICE_SECONDS = 2.0
"""A signal that comes again so soon is one request told twice: srun tells the rank, and so does its launcher."""


class StopSignal:
    """Notes SIGTERM, SIGINT, SIGHUP (unless it is ignored, as under nohup) and SIGUSR1 while open.

    A second one of the same kind acts as usual once `TWICE_SECONDS` have passed since the first; SIGUSR1 never
    does more than ask. One that opens inside another knows what that one has noted.

    Args:
        signals: which ones. clock: seconds.
    """

    def __init__(
        self, signals: tuple[signal.Signals, ...] = SIGNALS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.caught = False
        self._signals, self._clock = signals, clock
        self._first: dict[int, float] = {}
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in self._signals:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            previous = signal.signal(number, self._note)
            self._previous[number] = previous
            outer = getattr(previous, "__self__", None)
            self.caught |= isinstance(outer, StopSignal) and outer.caught
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        now = self._clock()
        if number == WARNING or now - self._first.setdefault(number, now) < TWICE_SECONDS:
            return
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        signal.raise_signal(number)
