"""Records of a task: the source of its rows, their conversion to text, and the metrics of its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TaskRow = Mapping[str, Any]
"""One row of a data set: column -> value."""
Split = Literal["train", "validation"]
TaskMetric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
"""(predictions, references) -> value by name, in percent."""


@dataclass(frozen=True)
class Example:
    """An input text and a target text.

    Args:
        reference: value that metrics compare an answer with: a class index, the accepted answers, ...
        trains: whether the example is used for training.
        evaluates: whether it is used for evaluation (a question with several answers is scored once).
    """

    inputs: str
    targets: str
    reference: Any
    trains: bool = True
    evaluates: bool = True


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub.

    ``validation``: its name of the validation split. ``revision``: branch, if the main one has no data files.
    """

    path: str
    name: str | None = None
    validation: str = "validation"
    revision: str | None = None


Loader = Callable[[Path, Split], Iterable[TaskRow]]
"""(cache directory, split) -> rows of a named data set; downloads are kept in the directory and checked by hash."""


@dataclass(frozen=True)
class Task:
    """A text-to-text task.

    Args:
        columns: columns that a row must have.
        examples: converts a row to examples: several for several answers, none for a row without a label.
        answer: converts a model's output text to the value that metrics compare; accepts any text.
        metrics: computes metrics from predictions and references.
    """

    name: str
    description: str
    source: Hub | Loader
    columns: tuple[str, ...]
    examples: Callable[[TaskRow], list[Example]]
    answer: Callable[[str], Any]
    metrics: TaskMetric


def choice(classes: Sequence[str]) -> Callable[[str], int]:
    """A parser of classification answers: the index of the class named by the text, else -1, which is always wrong."""
    return lambda text: classes.index(text.strip()) if text.strip() in classes else -1


def label(row: TaskRow, classes: Sequence[str], column: str = "label") -> int:
    """Class index of a row, from an index (the hub's files), a name or a boolean (the original files); -1 for none."""
    value = row[column]
    if isinstance(value, str):
        return classes.index(value) if value in classes else -1
    return -1 if value is None else int(value)
