"""Errors a user can cause. The command line prints their one line and exits with code 2; nothing else is caught."""

from __future__ import annotations

from altup_moe.config.exit_codes import EXIT_USER_ERROR


class UserError(ValueError):
    """Something the user asked for cannot be done; ``str(error)`` is one readable line.

    ``told``: whether another rank prints the line, once the ranks of a run have met; None before.
    ``exit_code``: of the command that it ends.
    """

    told: bool | None = None
    exit_code: int = EXIT_USER_ERROR


class PeerError(UserError):
    """The ranks of a run cannot start together: they differ, or another one has failed.

    Args:
        line: which rank, and why.
        told: as of `UserError`. code: the exit code of the rank that failed.
    """

    def __init__(self, line: str, *, told: bool = True, code: int = EXIT_USER_ERROR) -> None:
        super().__init__(line)
        self.told, self.exit_code = told, code


class ConfigError(UserError):
    """A configuration value that does not fit.

    Args:
        key: dotted key, e.g. ``moe.num_experts``.
        value: the value as given.
        fits: what would fit, in words.
    """

    def __init__(self, key: str, value: object, fits: str) -> None:
        super().__init__(f"{key}={value!r}: {fits}")
        self.key, self.value, self.fits = key, value, fits


class DataError(UserError):
    """A file whose content cannot be used.

    Args:
        file: the file's path.
        problem: what is wrong, in words.
        offset: byte offset of the first bad byte, where there is one.
    """

    def __init__(self, file: object, problem: str, offset: int | None = None) -> None:
        where = f"{file}" if offset is None else f"{file} at byte {offset}"
        super().__init__(f"{where}: {problem}")
        self.file, self.problem, self.offset = str(file), problem, offset
