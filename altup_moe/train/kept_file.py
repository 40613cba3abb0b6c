"""A file that a run appends to and that may not fail it: what a full disk refuses waits in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from altup_moe.config.os_errors import reason
from altup_moe.config.output import complain

BOUND_BYTES = 1 << 26
"""The most that waits for one file, 64 MiB: lines of about 100,000 steps. Later ones are lost, and counted."""


class KeptFile:
    """Appends records to a file, each whole or not at all, in their order. A disk that fails raises nothing.

    What cannot be written waits in memory, and is written before anything else at the first `flush` that succeeds. A
    record that was written in part is cut off again. The first failure is said in one line, and so is its end.

    Args:
        path: the file; it is made, or gone on with.
        prepare: called before the file is opened first; what it raises (OSError) is tried again as a write is.
        record: what a record is called, e.g. ``line``.
    """

    def __init__(self, path: Path, prepare: Callable[[], None] | None = None, record: str = "line") -> None:
        self.path, self._prepare, self._record = path, prepare, record
        self._file: int | None = None
        self._end: int | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = self._lost = 0
        self._problem: str | None = None
        self._said = self._said_end = False
        self.flush()

    def put(self, record: bytes) -> None:
        """Take a record; the next `flush` writes it."""
        if self._bytes + len(record) > BOUND_BYTES:
            if not self._lost:
                bound = f"{BOUND_BYTES >> 20} MiB wait to be written; later {self._record}s are lost"
                complain(f"{self.path}: {bound} until there is room")
            self._lost += 1
            return
        self._waiting.append(record)
        self._bytes += len(record)

    def write(self, record: bytes) -> None:
        """Take a record, and write all that wait if that is possible now."""
        self.put(record)
        self.flush()

    def flush(self) -> bool:
        """Write what waits. Returns whether all is written."""
        waited = len(self._waiting)
        try:
            file = self._opened()
            while self._waiting:
                self._append(file, self._waiting[0])
                self._bytes -= len(self._waiting.popleft())
        except OSError as error:
            self._release()
            self._problem = reason(error)
            if not self._said:
                self._said = True
                complain(f"{self.path}: {self._problem}; training goes on, its {self._record}s wait in memory for room")
            return False
        if self._problem is not None:
            self._problem = None
            if not self._said_end:
                self._said_end = True
                complain(f"{self.path}: written again, with the {waited} {self._record}(s) that waited")
        return True

    def close(self) -> None:
        """Write what waits, or say how much is lost."""
        self.flush()
        if lost := self._lost + len(self._waiting):
            complain(f"{self.path}: {lost} {self._record}(s) were not written ({self._problem or 'no room before'})")
        self._waiting.clear()
        self._release()

    def _opened(self) -> int:
        if self._file is None:
            if self._prepare is not None:
                self._prepare()
                self._prepare = None
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._file).st_size
            if self._end is not None and size > self._end:
                os.ftruncate(self._file, self._end)
            self._end = size if self._end is None else min(size, self._end)
        return self._file

    def _append(self, file: int, record: bytes) -> None:
        assert self._end is not None
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            if len(rest) < len(record):
                # If that fails too, it is done when the file is opened again.
                with suppress(OSError):
                    os.ftruncate(file, self._end)
            raise
        self._end += len(record)

    def _release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file)
