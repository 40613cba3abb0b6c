"""SQuAD 1.1 (arXiv 1606.05250): a question about a passage, answered in the passage's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from altup_moe.data.tasks.metrics import answers
from altup_moe.data.tasks.named import squad_shifts
from altup_moe.data.tasks.records import Example, Hub, Row, Task

COLUMNS = ("question", "context", "answers")


def nested_rows(content: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of a file in SQuAD's own format (articles of paragraphs of questions), with the hub's columns."""
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "id": question["id"],
                    "question": question["question"],
                    "context": paragraph["context"],
                    "answers": {"text": [answer["text"] for answer in question["answers"]]},
                }


def _question(row: Row) -> list[Example]:
    accepted = list(row["answers"]["text"])
    text = f"question: {row['question'].strip()} context: {row['context'].strip()}"
    return [Example(text, accepted[0], accepted)] if accepted else []


def _squad(name: str, description: str, source: Any) -> Task:
    return Task(name, description, source, COLUMNS, _question, str.strip, answers)


TASKS = (
    _squad("squad", "questions about a passage (SQuAD 1.1)", Hub("rajpurkar/squad")),
    _squad(
        "squad-bigbench",
        "SQuAD 1.1's development set to evaluate, SQuAD-Shifts (arXiv 2004.14444) to train on; inside a package that "
        "carries BIG-bench's canary: for fine-tuning, never for pretraining",
        lambda cache_dir, split: [row for file in squad_shifts(cache_dir, split) for row in nested_rows(file)],
    ),
)
