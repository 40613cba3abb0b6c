"""A command of a program, and the conversion of its errors to exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from altup_moe.config.errors import UserError
from altup_moe.config.exit_codes import EXIT_USER_ERROR


@dataclass(frozen=True)
class Command:
    """A command: what follows its name, and a one-line summary."""

    usage: str
    summary: str


def ended(name: str, work: Callable[[], int]) -> int:
    """Run a tool and return its exit code; for a `UserError` 2, after one line on standard error.

    Args:
        name: first word of that line.
    """
    try:
        code = work()
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"{name}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        # The reader (head, less) has gone; the interpreter must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
