"""Exit codes of every command and launcher."""

from __future__ import annotations

EXIT_FAILED = 1
"""It ran and failed: an exception, a proof that does not hold, a plan that does not fit."""

EXIT_USER_ERROR = 2
"""A value that cannot be; one line on standard error says which. Nothing was started."""

EXIT_STOPPED = 75
"""A signal stopped it after it had saved (EX_TEMPFAIL): the same command goes on."""

EXIT_TIMEOUT = 124
"""It was ended at its time limit, as `timeout` does."""
