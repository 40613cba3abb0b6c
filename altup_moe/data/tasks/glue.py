"""GLUE (arXiv 1804.07461), its rows spelled as in T5's appendix D."""

from __future__ import annotations

import contextlib
import math

from altup_moe.data.tasks.metrics import accuracy, combined_metrics, correlations, f1, matthews
from altup_moe.data.tasks.records import Example, Hub, Task, TaskMetric, TaskRow, choice, label

GLUE = "nyu-mll/glue"


def classification(
    name: str,
    source: Hub,
    columns: tuple[str, ...],
    classes: tuple[str, ...],
    metrics: TaskMetric,
    description: str,
    prefix: str | None = None,
) -> Task:
    """A classification task: inputs are `prefix column: text column: text ...`, the target is the name of a class."""

    def examples(row: TaskRow) -> list[Example]:
        parse_number = label(row, classes)
        parts = [prefix or name, *(f"{column}: {row[column]}" for column in columns)]
        return [Example(" ".join(parts), classes[parse_number], parse_number)] if parse_number >= 0 else []

    return Task(name, description, source, (*columns, "label"), examples, choice(classes), metrics)


def _similarity(row: TaskRow) -> list[Example]:
    """STS-B: a number from 0 to 5, rounded to a fifth, written out."""
    score = float(row["label"])
    text = f"stsb sentence1: {row['sentence1']} sentence2: {row['sentence2']}"
    return [Example(text, f"{math.floor(score * 5 + 0.5) / 5:.1f}", score)] if score >= 0 else []


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
    ),
    classification(
        "mnli",
        Hub(GLUE, "mnli", validation="validation_matched"),
        ("hypothesis", "premise"),
        ("entailment", "neutral", "contradiction"),
        accuracy,
        "does a premise entail a hypothesis",
    ),
    classification(
        "qnli",
        Hub(GLUE, "qnli"),
        ("question", "sentence"),
        _ENTAILMENT,
        accuracy,
        "does a sentence answer a question",
    ),
    classification(
        "glue_rte",
        Hub(GLUE, "rte"),
        _PAIR,
        _ENTAILMENT,
        accuracy,
        "does a sentence entail another (GLUE's rows)",
        prefix="rte",
    ),
    classification(
        "wnli",
        Hub(GLUE, "wnli"),
        _PAIR,
        ("not_entailment", "entailment"),
        accuracy,
        "is a pronoun resolved rightly",
    ),
)
