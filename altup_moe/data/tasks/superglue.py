"""SuperGLUE (arXiv 1905.00537), its rows spelled as in T5's appendix D."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from altup_moe.data.tasks.glue import classification
from altup_moe.data.tasks.metrics import accuracy, combined_metrics, macro_f1, multirc_scores, normalised, squad_scores
from altup_moe.data.tasks.records import Example, Hub, Task, TaskRow, choice, label

BOOLEAN_CLASSES = ("False", "True")
_CHOICES = ("choice1", "choice2")
_TAG = re.compile(r"<[^>]+>")
_HIGHLIGHT = re.compile(r"(\.|\?|!|\"|')?\s*@highlight\s*")


def _hub(name: str) -> Hub:
    # Its main branch holds a script, which `datasets` no longer runs; this branch is the hub's own conversion.
    return Hub("aps/super_glue", name, revision="refs/convert/parquet")


def _paragraph(row: TaskRow) -> list[Example]:
    """MultiRC: is this answer to that question right; markup is dropped."""
    truth = label(row, BOOLEAN_CLASSES)
    paragraph = " ".join(_TAG.sub(" ", row["paragraph"]).split())
    text = f"multirc question: {row['question']} answer: {row['answer']} paragraph: {paragraph}"
    question = (row["idx"]["paragraph"], row["idx"]["question"])
    return [Example(text, BOOLEAN_CLASSES[truth], (question, truth))] if truth >= 0 else []


def _cloze(row: TaskRow) -> list[Example]:
    """ReCoRD: which entity fills the gap. Trained on every accepted one, scored once."""
    passage = _HIGHLIGHT.sub(lambda found: f"{found[1] or '.'} ", row["passage"]).strip()
    text = f"record query: {row['query']} entities: {', '.join(row['entities'])} passage: {passage}"
    accepted = list(dict.fromkeys(row["answers"]))
    return [Example(text, one, accepted, evaluates=n == 0) for n, one in enumerate(accepted)]


def _sense(row: TaskRow) -> list[Example]:
    """WiC: is a word used in the same sense."""
    truth = label(row, BOOLEAN_CLASSES)
    text = f"wic sentence1: {row['sentence1']} sentence2: {row['sentence2']} word: {row['word']}"
    return [Example(text, BOOLEAN_CLASSES[truth], truth)] if truth >= 0 else []


def _pronoun(row: TaskRow) -> list[Example]:
    """WSC: what does the starred pronoun mean. Only rows whose noun is right have a text to train on."""
    truth, words = label(row, BOOLEAN_CLASSES), row["text"].split()
    first = int(row["span2_index"])
    size = len(row["span2_text"].split())
    words[first : first + size] = ["*", *words[first : first + size], "*"]
    text, noun = "wsc: " + " ".join(words), row["span1_text"]
    return [Example(text, noun, (noun, truth), trains=truth == 1)] if truth >= 0 else []


def _same_noun(predictions: Sequence[str], references: Sequence[tuple[str, int]]) -> dict[str, float]:
    """WSC's accuracy: the written noun is the row's if the words of one are among the other's."""
    said = []
    for text, (noun, _) in zip(predictions, references, strict=True):
        ours, theirs = set(normalised(text).split()), set(normalised(noun).split())
        said.append(int(bool(ours) and (ours <= theirs or theirs <= ours)))
    return accuracy(said, [truth for _, truth in references])


def _text(answer: str) -> Any:
    return answer.strip()


TASKS = (
    classification(
        "boolq",
        _hub("boolq"),
        ("passage", "question"),
        BOOLEAN_CLASSES,
        accuracy,
        "yes-or-no questions about a passage",
    ),
    classification(
        "cb",
        _hub("cb"),
        ("hypothesis", "premise"),
        ("entailment", "contradiction", "neutral"),
        combined_metrics(accuracy, macro_f1(3)),
        "does a premise commit its author to a hypothesis",
    ),
    classification(
        "copa", _hub("copa"), ("choice1", "choice2", "premise", "question"), _CHOICES, accuracy, "cause or effect"
    ),
    Task(
        "multirc",
        "which answers about a paragraph are right",
        _hub("multirc"),
        ("paragraph", "question", "answer", "idx", "label"),
        _paragraph,
        choice(BOOLEAN_CLASSES),
        multirc_scores,
    ),
    Task(
        "record",
        "fill a gap with an entity of a passage",
        _hub("record"),
        ("passage", "query", "entities", "answers"),
        _cloze,
        _text,
        squad_scores,
    ),
    classification(
        "rte",
        _hub("rte"),
        ("hypothesis", "premise"),
        ("entailment", "not_entailment"),
        accuracy,
        "does a premise entail a hypothesis",
    ),
    Task(
        "wic",
        "is a word used in the same sense",
        _hub("wic"),
        ("word", "sentence1", "sentence2", "label"),
        _sense,
        choice(BOOLEAN_CLASSES),
        accuracy,
    ),
    Task(
        "wsc",
        "what a pronoun refers to",
        _hub("wsc"),
        ("text", "span1_text", "span2_text", "span2_index", "label"),
        _pronoun,
        _text,
        _same_noun,
    ),
)
