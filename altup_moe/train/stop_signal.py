"""Stopping in good order: a signal is noted, all ranks agree after the step, the run saves and exits."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType


class StopSignal:
    """Notes SIGTERM and SIGINT while open; a second one of the same kind acts as usual."""

    def __init__(self) -> None:
        self.caught = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
