"""Show on stderr how far a search of the planner is; stdout has the result alone."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from altup_moe.plan.report import layout
from altup_moe.plan.search import Progress

ON_TERMINAL, ELSEWHERE = 0.2, 5.0
"""Seconds between two lines."""


class ProgressLine:
    """Context manager that shows a search: on a terminal one line, written anew and taken away at the end.

    Elsewhere a line every few seconds. Short searches show nothing.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        self._every = ON_TERMINAL if self._terminal else ELSEWHERE
        self._next = clock() + self._every
        self._shown = False

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def show(self, progress: Progress) -> None:
        """Show the progress if it is time to."""
        if self._clock() < self._next:
            return
        text = progress_text(progress)
        if self._terminal:
            # A line that is longer than the terminal could not be overwritten.
            self._stream.write("\r" + text[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
        self._next, self._shown = self._clock() + self._every, True


def progress_text(progress: Progress) -> str:
    """Layouts looked at, and the best so far, in one line."""
    words = f"{progress.gpus:,} GPUs: {progress.looked:,} of {progress.layouts:,} layouts looked at"
    if progress.best is None:
        return f"{words}, none fits so far"
    best = layout(progress.best, progress.gpus)
    return f"{words}, {progress.simulated:,} simulated; best so far {progress.seconds:.3f} s a step: {best}"
