"""Run a command that dies with the process that started it: `python parent_death.py PARENT COMMAND ...`.

A program that is killed with -9 cannot stop the processes that it started; the kernel can. This script asks the kernel
to do so, and then becomes the command (execve keeps the request). It imports nothing of the package, to start fast.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process (SIGKILL) when its parent ends.

    If `parent`, the process that started this one, has already ended, this process ends now. Without Linux only the
    latter holds.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])
