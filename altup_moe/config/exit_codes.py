"""Exit codes of every command and launcher."""

from __future__ import annotations

EXIT_FAILED = 1
"""The command ran and failed: an exception, a failed verification, a plan that does not fit."""

EXIT_USER_ERROR = 2
"""A wrong value, which one line on standard error names. Nothing was started."""

EXIT_STOPPED = 75
"""A signal stopped the run after a save (EX_TEMPFAIL); the same command continues it."""

EXIT_DIVERGED = 76
"""Training cannot go on with these numbers: too many skipped steps in a row, or a loss spike where one stops the run.
The same command would end the same way; a checkpoint from before is there."""

EXIT_HUNG = 77
"""A rank or link did not answer for train.hang_timeout; all ranks ended. The same command continues from the newest
checkpoint."""

EXIT_INTERRUPTED = 130
"""SIGINT (Ctrl-C) ended the command before it had anything to save; 128 + 2, as shells count."""

EXIT_TIMEOUT = 124
"""The time limit ended the command; the exit code of `timeout`."""
