"""GLUE (arXiv 1804.07461), its rows spelled as in T5's appendix D."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from altup_moe.data.tasks.metrics import accuracy, combined_metrics, correlations, f1, matthews
from altup_moe.data.tasks.records import Example, Hub, Passage, Task, TaskMetric, TaskRow, choice, example
from altup_moe.data.tasks.rows import RowError, has_label, label, text

GLUE = "nyu-mll/glue"


def classification(
    name: str,
    source: Hub,
    columns: tuple[str, ...],
    classes: tuple[str, ...],
    metrics: TaskMetric,
    description: str,
    prefix: str | None = None,
    passages: tuple[str, ...] | None = None,
) -> Task:
    """A classification task: inputs are `prefix column: text column: text ...`, the target is the name of a class.

    Args:
        passages: columns that may be cut where the inputs are too long; None is all of them.
    """
    cut = columns if passages is None else passages

    def examples(row: TaskRow) -> list[Example]:
        number = label(row, classes)
        if number is None:
            return []
        parts: list[str | Passage] = [prefix or name]
        for column in columns:
            content = text(row, column)
            parts += [f"{column}:", Passage(content) if column in cut else content]
        return [example(parts, classes[number], number)]

    return Task(name, description, source, (*columns, "label"), examples, choice(classes), metrics, classes)


def similarity(score: float) -> str:
    """STS-B's target: the score rounded to a fifth, in float32 and halves to even as T5's preprocessor, written out."""
    fifths = np.round(np.float32(score) * np.float32(5))
    return f"{fifths / np.float32(5):.1f}"


def _similarity(row: TaskRow) -> list[Example]:
    """STS-B: a number from 0 to 5."""
    value = row["label"]
    if not isinstance(value, bool) and not has_label(value):
        return []
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 5:
        raise RowError("label", value, "no number from 0 to 5")
    first, second = (Passage(text(row, column)) for column in _PAIR)
    return [example(["stsb sentence1:", first, "sentence2:", second], similarity(score), score)]


def parse_number(text: str) -> float:
    """The number that a text spells; -1 if it is not a finite number."""
    with contextlib.suppress(ValueError):
        value = float(text)
        return value if math.isfinite(value) else -1.0
    return -1.0


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

TASKS = (
    classification(
        "cola", Hub(GLUE, "cola"), ("sentence",), ("unacceptable", "acceptable"), matthews, "is a sentence grammatical"
    ),
    classification(
        "sst2", Hub(GLUE, "sst2"), ("sentence",), ("negative", "positive"), accuracy, "sentiment of film reviews"
    ),
    classification(
        "mrpc",
        Hub(GLUE, "mrpc"),
        _PAIR,
        ("not_equivalent", "equivalent"),
        combined_metrics(f1, accuracy),
        "do two sentences say the same",
    ),
    classification(
        "qqp",
        Hub(GLUE, "qqp"),
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        combined_metrics(f1, accuracy),
        "do two questions ask the same",
    ),
    Task(
        "stsb",
        "how alike two sentences are, 0 to 5",
        Hub(GLUE, "stsb"),
        (*_PAIR, "label"),
        _similarity,
        parse_number,
        correlations,
        tuple(similarity(number / 5) for number in range(26)),
    ),
    classification(
        "mnli",
        Hub(GLUE, "mnli", validation="validation_matched"),
        ("hypothesis", "premise"),
        ("entailment", "neutral", "contradiction"),
        accuracy,
        "does a premise entail a hypothesis",
        passages=("premise",),
    ),
    classification(
        "qnli",
        Hub(GLUE, "qnli"),
        ("question", "sentence"),
        _ENTAILMENT,
        accuracy,
        "does a sentence answer a question",
        passages=("sentence",),
    ),
    classification(
        "glue_rte",
        Hub(GLUE, "rte"),
        _PAIR,
        _ENTAILMENT,
        accuracy,
        "does a sentence entail another (GLUE's rows)",
        prefix="rte",
        passages=("sentence1",),
    ),
    classification(
        "wnli",
        Hub(GLUE, "wnli"),
        _PAIR,
        ("not_entailment", "entailment"),
        accuracy,
        "is a pronoun resolved rightly",
        passages=("sentence1",),
    ),
)
