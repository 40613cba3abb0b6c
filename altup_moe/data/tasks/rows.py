"""Read the columns of a task's row: texts, and labels in any of their known spellings.

A label that is none of the classes is an error; a row that says it has no label is left out by its task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from altup_moe.data.tasks.records import TaskRow

BOOLEAN_CLASSES = ("False", "True")
_BOOLEAN_SPELLINGS = {"f": 0, "no": 0, "t": 1, "yes": 1}
_INTEGER = re.compile(r"[+-]?\d+(\.0*)?")
_NO_LABEL = ("", "-", "<unk>")
"""Besides null, NaN and -1: `-` is SNLI's sign that annotators did not agree, `<unk>` T5's target of such a row."""


class RowError(ValueError):
    """A row that is none of its task; ``str(error)`` names the column and its value."""

    def __init__(self, column: str, value: object, problem: str) -> None:
        shown = repr(value)
        super().__init__(f"{column} is {shown if len(shown) <= 80 else shown[:77] + '...'}, {problem}")


def label(row: TaskRow, classes: Sequence[str], column: str = "label") -> int | None:
    """Class index of a row; None if it has no label (null, -1, an empty text, ...).

    Known spellings are the index (the hub's files; as a number or a text), the name in any case, with spaces, dashes
    or underscores (the original files), and for the classes False and True also a boolean, T, F, yes and no.

    Raises:
        RowError: any other value.
    """
    value = row[column]
    if isinstance(value, bool):
        if tuple(classes) == BOOLEAN_CLASSES:
            return int(value)
    elif not has_label(value):
        return None
    elif isinstance(value, int | float) or _INTEGER.fullmatch(str(value).strip()):
        if float(value) in range(len(classes)):
            return int(float(value))
    elif isinstance(value, str):
        names = {_plain(name): number for number, name in enumerate(classes)}
        names |= _BOOLEAN_SPELLINGS if tuple(classes) == BOOLEAN_CLASSES else {}
        if _plain(value) in names:
            return names[_plain(value)]
    numbers = " or ".join(str(number) for number in range(len(classes)))
    raise RowError(column, value, f"no label that is known; {', '.join(classes)} would fit, or {numbers}")


def has_label(value: Any) -> bool:
    """Whether the value of a label says that there is one."""
    if isinstance(value, str):
        text = value.strip()
        return text not in _NO_LABEL and not (_INTEGER.fullmatch(text) and float(text) == -1)
    return value is not None and not (isinstance(value, float) and math.isnan(value)) and value != -1


def text(row: TaskRow, column: str) -> str:
    """The text of a column. Raises RowError if it is none (null, a number): it would be read as its spelling."""
    value = row[column]
    if not isinstance(value, str):
        raise RowError(column, value, "no text")
    return value


def texts(value: Any, column: str) -> list[str]:
    """A list of texts; a single text is a list of one, null none. Raises RowError for anything else."""
    listed = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise RowError(column, value, "no list of texts")
    return list(listed)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())
