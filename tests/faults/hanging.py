"""A rank of a small run that goes wrong in its fourth step: `python -m tests.faults.hanging FAULT RANK CONFIG`."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

STEP = 3
"""Steps that are taken before the fault."""


def stop(take: Callable[..., Any]) -> Any:
    """The process is stopped."""
    os.kill(os.getpid(), signal.SIGSTOP)
    # Another thread takes the signal: this one runs on for a moment.
    time.sleep(2)
    return take()


def skip(take: Callable[..., Any]) -> Any:
    """One all-reduce of the step is left out."""
    import torch

    from altup_moe.train import step

    with mock.patch.object(step, "_label_weight", return_value=torch.ones(())):
        return take()


def lock(take: Callable[..., Any]) -> Any:
    """The main thread waits for a lock that nobody gives back."""
    never = threading.Lock()
    with never:
        never.acquire()
    return take()


def interpreter(take: Callable[..., Any]) -> Any:
    """A C function that does not return holds the interpreter's lock."""
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)
    return take()


def link(take: Callable[..., Any]) -> Any:
    """This node's link goes down."""
    subprocess.run(["ip", "link", "set", "veth0", "down"], check=True)
    return take()


FAULTS = {"link": link, "stop": stop, "skip": skip, "lock": lock, "interpreter": interpreter}
ABSENT = "absent"
"""The fault of a rank that is never started; the others wait for it less long than the half minute of users' runs."""
ABSENT_SECONDS = 6.0


def main(fault: str, victim: str, text: str) -> int:
    """Train; the victim meets its fault."""
    from altup_moe.config.imports import without_collections
    from altup_moe.config.load import from_dict
    from altup_moe.parallel.compile_later import compile_later
    from altup_moe.parallel.watchdog import watcher

    with without_collections(), compile_later():  # as the command does
        from altup_moe.train import loop

    if fault == ABSENT:
        watcher.START_SECONDS = ABSENT_SECONDS
    config = from_dict(json.loads(text))
    take_step = loop.take_step

    def faulty(run: Any, *args: Any, **kwargs: Any) -> Any:
        if run.step == STEP and os.environ["RANK"] == victim:
            return FAULTS[fault](lambda: take_step(run, *args, **kwargs))
        return take_step(run, *args, **kwargs)

    loop.take_step = faulty
    return loop.train(config)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
