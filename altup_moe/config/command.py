"""A command of a program, and how one ends: its exit code, a mistake in one line, or a reader that has seen enough."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from altup_moe.config.errors import UserError
from altup_moe.config.exit_codes import EXIT_USER_ERROR


@dataclass(frozen=True)
class Command:
    """What one command is called, takes and does."""

    usage: str
    summary: str
    run: Callable[[Sequence[str]], int]
    show_help: Callable[[Sequence[str]], None]


def ended(name: str, work: Callable[[], int]) -> int:
    """The exit code of a tool's work; 2 with one line on standard error for a `UserError`.

    Args:
        name: what the line begins with.
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
