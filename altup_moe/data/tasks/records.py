"""Records of a task: the source of its rows, their conversion to text, and the metrics of its answers.

Labels and columns of a row are read in `rows`.
"""

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
Span = tuple[int, int]
"""First character of a part of a text, and the first one behind it."""


@dataclass(frozen=True)
class Passage:
    """A part of the inputs that may be cut at its end where the inputs are too long for the model."""

    text: str


@dataclass(frozen=True)
class Example:
    """An input text and a target text.

    Args:
        reference: value that metrics compare an answer with: a class index, the accepted answers, ...
        trains: whether the example is used for training.
        evaluates: whether it is used for evaluation (a question with several answers is scored once).
        passages: parts of `inputs` that may be cut, in order; None is all of it.
    """

    inputs: str
    targets: str
    reference: Any
    trains: bool = True
    evaluates: bool = True
    passages: tuple[Span, ...] | None = None


def example(
    parts: Sequence[str | Passage], targets: str, reference: Any, *, trains: bool = True, evaluates: bool = True
) -> Example:
    """An example whose inputs are the parts with a space between them; of these, only passages may be cut."""
    inputs, passages = "", []
    for number, part in enumerate(parts):
        inputs += " " if number else ""
        text = part.text if isinstance(part, Passage) else part
        if isinstance(part, Passage):
            passages.append((len(inputs), len(inputs) + len(text)))
        inputs += text
    return Example(inputs, targets, reference, trains, evaluates, tuple(passages))


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
        examples: converts a row to examples: several for several answers, none for a row without a label. Raises
            `RowError` for a row that cannot be read.
        answer: converts a model's output text to the value that metrics compare; accepts any text.
        metrics: computes metrics from predictions and references.
        classes: all texts that can be right; empty where any text can.
    """

    name: str
    description: str
    source: Hub | Loader
    columns: tuple[str, ...]
    examples: Callable[[TaskRow], list[Example]]
    answer: Callable[[str], Any]
    metrics: TaskMetric
    classes: tuple[str, ...] = ()


def choice(classes: Sequence[str]) -> Callable[[str], int]:
    """A parser of classification answers: the index of the class named by the text, else -1, which is always wrong."""
    return lambda text: classes.index(text.strip()) if text.strip() in classes else -1
