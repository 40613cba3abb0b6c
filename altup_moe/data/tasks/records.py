"""What a task is: where its rows come from, how they are read and written as text, and how answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TaskRow = Mapping[str, Any]
"""One row of a data set, by column."""
Split = Literal["train", "validation"]
TaskMetric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
"""(predictions, references) -> figures by name, in percent."""


@dataclass(frozen=True)
class Example:
    """One text to read and one to write.

    Args:
        reference: what metrics compare an answer with: a class's number, the accepted answers, ...
        trains, evaluates: whether it is trained on, and scored (a question with several answers is scored once).
    """

    inputs: str
    targets: str
    reference: Any
    trains: bool = True
    evaluates: bool = True


@dataclass(frozen=True)
class Hub:
    """A data set of the Hugging Face hub.

    ``validation``: its name for that split. ``revision``: a branch, where its main one has no data files.
    """

    path: str
    name: str | None = None
    validation: str = "validation"
    revision: str | None = None


Loader = Callable[[Path, Split], Iterable[TaskRow]]
"""Rows of a split that come by name; downloads are kept in the directory given, checked by hash."""


@dataclass(frozen=True)
class Task:
    """A task by name.

    Args:
        columns: what a row must have.
        examples: a row as its examples (several where it has several answers; none for rows without a label).
        answer: the text that a model wrote, as what metrics compare; it is never refused.
        metrics: predictions and references to figures.
    """

    name: str
    description: str
    source: Hub | Loader
    columns: tuple[str, ...]
    examples: Callable[[TaskRow], list[Example]]
    answer: Callable[[str], Any]
    metrics: TaskMetric


def choice(classes: Sequence[str]) -> Callable[[str], int]:
    """Answers of a classification: the class that the text names exactly, else -1, which is always wrong."""
    return lambda text: classes.index(text.strip()) if text.strip() in classes else -1


def label(row: TaskRow, classes: Sequence[str], column: str = "label") -> int:
    """A row's class by number, as the hub stores it, or by name or truth value, as the original files do; -1: none."""
    value = row[column]
    if isinstance(value, str):
        return classes.index(value) if value in classes else -1
    return -1 if value is None else int(value)
