"""SQuAD 1.1 (arXiv 1606.05250): a question about a passage, answered in the passage's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from altup_moe.data.tasks.metrics import squad_scores
from altup_moe.data.tasks.named import squad_shifts
from altup_moe.data.tasks.records import Example, Hub, Passage, Split, Task, TaskRow, example
from altup_moe.data.tasks.rows import RowError, text, texts

COLUMNS = ("question", "context", "answers")
_SENTENCES_MEET = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


def nested_rows(content: Mapping[str, Any]) -> Iterator[TaskRow]:
    """Rows of a file in SQuAD's nested format (articles, paragraphs, questions), with the hub's columns."""
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                accepted = question["answers"]
                starts = [answer.get("answer_start") for answer in accepted]
                yield {
                    "id": question["id"],
                    "question": question["question"],
                    "context": paragraph["context"],
                    "answers": {"text": [answer["text"] for answer in accepted], "answer_start": starts},
                }


def sentence(context: str, start: int, length: int) -> str:
    """The sentence, or consecutive sentences, that contain the `length` characters from `start` on.

    A sentence ends with a mark that is followed by white space and a capital letter or a digit. Abbreviations such as
    "Dr. No" therefore cut a sentence too short.
    """
    edges = [0, *(between.end() for between in _SENTENCES_MEET.finditer(context)), len(context)]
    first = max(edge for edge in edges if edge <= start)
    last = min((edge for edge in edges if edge >= start + length), default=len(context))
    return context[first:last].strip()


def _of_passage(row: TaskRow) -> list[Example]:
    return _question(row, text(row, "context"))


def _of_sentence(row: TaskRow) -> list[Example]:
    accepted, starts = _accepted(row), row["answers"]["answer_start"]
    if not accepted:
        return []
    start = starts[0] if isinstance(starts, list | tuple) else starts
    return _question(row, sentence(text(row, "context"), start, len(accepted[0])))


def _question(row: TaskRow, context: str) -> list[Example]:
    accepted = _accepted(row)
    parts: list[str | Passage] = ["question:", text(row, "question").strip(), "context:", Passage(context.strip())]
    return [example(parts, accepted[0], accepted)] if accepted else []


def _accepted(row: TaskRow) -> list[str]:
    """The accepted answers. Raises RowError where they are no texts; a text alone is one answer."""
    answers = row["answers"]
    if not isinstance(answers, Mapping) or "text" not in answers:
        raise RowError("answers", answers, "no table of text and answer_start")
    return texts(answers["text"], "answers.text")


def _squad(
    name: str, description: str, source: Any, examples: Callable[[TaskRow], list[Example]] = _of_passage
) -> Task:
    return Task(name, description, source, COLUMNS, examples, str.strip, squad_scores)


def _bigbench(cache_dir: Path, split: Split) -> list[TaskRow]:
    return [row for file in squad_shifts(cache_dir, split) for row in nested_rows(file)]


TASKS = (
    _squad("squad", "questions about a passage (SQuAD 1.1)", Hub("rajpurkar/squad")),
    _squad(
        "squad-bigbench",
        "SQuAD 1.1's development set to evaluate, SQuAD-Shifts (arXiv 2004.14444) to train on; inside a package that "
        "carries BIG-bench's canary: for fine-tuning, never for pretraining",
        _bigbench,
    ),
    _squad(
        "squad-bigbench-sentences",
        "squad-bigbench with every passage cut down to the sentence that holds the (first accepted) answer: for models "
        "too small to read a passage; its figures are not SQuAD's",
        _bigbench,
        _of_sentence,
    ),
)
