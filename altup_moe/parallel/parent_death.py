"""Processes that end with the process that started them: `python parent_death.py [--stop] PARENT COMMAND ...`.

A program that is killed with -9 cannot stop the processes that it started; the kernel can. This script asks the kernel
to do so, and then becomes the command (execve keeps the request). It imports nothing of the package, to start fast.
"""

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
SECONDS_TO_SAVE = "ALTUP_MOE_ORPHAN_SECONDS"
"""Variable: seconds that a rank has to save and end after its launcher has died; then it kills itself."""
LAUNCHER_ID = "ALTUP_MOE_LAUNCHER_PID"
"""Variable: process of the launcher, of ours, that has started this rank, also through others."""
DEFAULT_SECONDS_TO_SAVE = 120.0
POLL_SECONDS = 0.5


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent ends.

    If `parent`, the process that started this one, has already ended, this process ends now. Without Linux only the
    latter holds.
    """
    _request(parent, signal.SIGKILL)


def stop_with_parent(parent: int) -> None:
    """Have the kernel ask this process to stop (SIGTERM) when its parent ends, so that it can save first.

    `end_after_parent` bounds how long that may take. The rest is as with `die_with_parent`.
    """
    _request(parent, signal.SIGTERM)


def end_after_parent(parent: int, seconds: float, launcher: int | None = None) -> threading.Thread:
    """Kill this process `seconds` after its parent has ended, if it has not ended by then. Returns the thread.

    A thread does it, since the main thread may wait for a rank that answers no more.

    Args:
        launcher: a process further up, which the kernel does not watch for this one. When it ends first this process
            gets SIGUSR1, which asks a run to stop and never does more; then it has as many seconds.
    """

    def work() -> None:
        while os.getppid() == parent and (launcher is None or _exists(launcher)):
            time.sleep(POLL_SECONDS)
        if os.getppid() == parent:
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=work, name="end-after-parent", daemon=True)
    thread.start()
    return thread


def launcher_process() -> int | None:
    """The process that `LAUNCHER_ID` names, if it runs on this machine."""
    text = os.environ.get(LAUNCHER_ID, "")
    return int(text) if text.isascii() and text.isdigit() and _exists(int(text)) else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def seconds_to_save() -> float:
    """The bound that `SECONDS_TO_SAVE` sets; its default if it is no number of seconds."""
    try:
        seconds = float(os.environ.get(SECONDS_TO_SAVE, ""))
    except ValueError:
        return DEFAULT_SECONDS_TO_SAVE
    return seconds if 0 <= seconds <= 1e6 else DEFAULT_SECONDS_TO_SAVE


def _request(parent: int, number: signal.Signals) -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(128 + number)


if __name__ == "__main__":
    stops = sys.argv[1] == "--stop"
    parent, *command = sys.argv[1 + stops :]
    (stop_with_parent if stops else die_with_parent)(int(parent))
    os.execvp(command[0], command)
