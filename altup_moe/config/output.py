"""Standard output and error that may fail: a full disk, a reader that has gone, a terminal that was closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from altup_moe.config.os_errors import reason


def complain(line: str) -> None:
    """A line on standard error, if that can be written."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def discard(stream: Any) -> None:
    """Send what a stream still holds, and all that follows, nowhere: the interpreter flushes it once more at exit."""
    with suppress(OSError, ValueError):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(descriptor, stream.fileno())
        finally:
            os.close(descriptor)
        stream.flush()


class _Unfailing:
    """A text stream whose writes never raise OSError. What cannot be written is lost; the first time is said."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name, self.failed = stream, name, False

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._stream, attribute)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self.failed:
            self.failed = True
            complain(f"{self._name}: {reason(error)}; training goes on without it")


@contextmanager
def unfailing_output() -> Iterator[None]:
    """Within the block nothing that is printed can end the process."""
    before = sys.stdout, sys.stderr
    streams = [_Unfailing(sys.stdout, "standard output"), _Unfailing(sys.stderr, "standard error")]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream, own in zip(streams, before, strict=True):
            if stream.failed:
                try:
                    own.flush()
                except OSError:
                    discard(own)
