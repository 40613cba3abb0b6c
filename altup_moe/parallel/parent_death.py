"""Run a command that dies with the process that started it: `python parent_death.py PARENT COMMAND ...`.

A study that is killed with -9 cannot stop its trainings; the kernel can. This sets the signal and becomes the command
(execve keeps it). It imports nothing, to start fast.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie(parent: int) -> None:
    """Be killed once `parent`, which started this process, is gone; now, if it already is. Linux; else nothing."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
