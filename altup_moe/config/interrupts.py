"""Ctrl-C as an exit code. Libraries may turn KeyboardInterrupt into errors of their own, so the signal is noted."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType


class Interrupts:
    """Notes SIGINT while open, and raises KeyboardInterrupt as Python does. Training replaces it while it takes steps.

    It changes nothing outside the main thread, or where the signal is ignored or handled already.
    """

    def __init__(self) -> None:
        self.noted = False
        self._replaced = False

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._replaced = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._replaced:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._replaced:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = True
        raise KeyboardInterrupt


def say_interrupted() -> None:
    """Print one line on standard error; of several ranks the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print("altup-moe: interrupted (Ctrl-C)", file=sys.stderr, flush=True)
