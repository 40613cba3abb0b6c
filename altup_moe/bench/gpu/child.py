"""The process of one check: `python -m altup_moe.bench.gpu.child NAME SIZES SECONDS END DIRECTORY`.

It writes what the check has found, or how it failed. Shortly before its time is over it writes where every thread is,
and ends: a hang that lets Python run is told with its place.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict
from importlib import import_module
from typing import Any

from altup_moe.bench.gpu.checks import CHECKS
from altup_moe.bench.gpu.sizes import SIZES
from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.parallel.start_ranks import write_result

LEFT_TO_TELL = 0.03
"""Share of a check's time that is kept for telling where it hangs."""


def main(name: str, sizes: str, seconds: str, end: str, directory: str) -> None:
    """Run a check, and leave its result in `directory`.

    Args:
        seconds: its time. end: when that is over, by the monotonic clock, which all processes of a machine share.
            Starting this process, slow on a busy machine, has taken a part of it.
    """
    left = float(end) - time.monotonic() - float(seconds) * LEFT_TO_TELL
    clock = threading.Timer(max(0.0, left), _tell_and_end, (directory,))
    clock.daemon = True
    clock.start()
    check = CHECKS[name]
    try:
        with LibraryWarnings():
            module = import_module(f"altup_moe.bench.gpu.{check.module}")
            result: dict[str, Any] = {"found": asdict(getattr(module, check.function)(SIZES[sizes]))}
    except Exception:
        # Whatever it is: it is this check's result.
        result = {"failed": traceback.format_exc()}
    clock.cancel()
    write_result(directory, result)


def _tell_and_end(directory: str) -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        write_result(directory, {"timed out": file.read()})
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
