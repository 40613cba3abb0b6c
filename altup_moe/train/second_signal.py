"""A second signal that ends a process at once, also where the main thread waits in C++ and runs no Python.

Python runs handlers of signals in the main thread alone. A rank that waits in gloo for another one never gets there.
But the interpreter also writes each signal's number to a file descriptor as it arrives, and a thread can read that.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

GRACE = 1.0
"""Seconds that the main thread has to act on a second signal itself."""


class SecondSignal:
    """Calls `told` in a thread with the number of each signal that Python handles, between `open` and `close`.

    Where another part of the process (asyncio) has taken the descriptor already, nothing is done.
    """

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told = told
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def open(self) -> None:
        """Begin. In the main thread."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
            ours.close()
            theirs.close()
            return
        self._ends = ours, theirs
        threading.Thread(target=self._read, args=(ours,), name="second-signal", daemon=True).start()

    def close(self) -> None:
        """End. In the main thread."""
        if self._ends is None:
            return
        (_, theirs), self._ends = self._ends, None
        signal.set_wakeup_fd(-1)
        theirs.close()

    def _read(self, pipe: socket.socket) -> None:
        with pipe, suppress(OSError):
            while data := pipe.recv(64):
                for number in data:
                    self._told(number)


def end_by(number: int) -> None:
    """End this process by a signal as if nobody handled it; from any thread."""
    # signal.signal works in the main thread alone.
    ctypes.CDLL(None).signal(number, None)
    os.kill(os.getpid(), number)
