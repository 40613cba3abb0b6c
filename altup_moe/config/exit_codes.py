"""Exit codes of every command and launcher."""

from __future__ import annotations

EXIT_FAILED = 1
"""The command ran and failed: an exception, a failed verification, a plan that does not fit."""

EXIT_USER_ERROR = 2
"""A wrong value, which one line on standard error names. Nothing was started."""

EXIT_STOPPED = 75
"""A signal stopped the run after a save (EX_TEMPFAIL); the same command continues it."""

EXIT_INTERRUPTED = 130
"""SIGINT (Ctrl-C) ended the command before it had anything to save; 128 + 2, as shells count."""

EXIT_TIMEOUT = 124
"""The time limit ended the command; the exit code of `timeout`."""
