"""Errors a user can cause. The command line prints their one line and exits with code 2; nothing else is caught."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user asked for cannot be done; ``str(error)`` is one readable line."""


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
