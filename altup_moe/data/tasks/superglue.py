"""SuperGLUE (arXiv 1905.00537), its rows spelled as in T5's appendix D."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from altup_moe.data.tasks.glue import classification
from altup_moe.data.tasks.metrics import accuracy, combined_metrics, macro_f1, multirc_scores, squad_scores
from altup_moe.data.tasks.records import Example, Hub, Passage, Task, TaskRow, choice, example
from altup_moe.data.tasks.rows import BOOLEAN_CLASSES, RowError, label, text, texts
from altup_moe.data.tasks.wsc import marked, same_noun

_CHOICES = ("choice1", "choice2")
_SENTENCE_ENDS = re.compile(r"([.?!\"'])\n@highlight\n")


def _hub(name: str) -> Hub:
    # Its main branch holds a script, which `datasets` no longer runs; this branch is the hub's own conversion.
    return Hub("aps/super_glue", name, revision="refs/convert/parquet")


def _without_markup(text: str) -> str:
    """MultiRC's texts without `<br>` (a space), `<b>` and `</b>`; any other `<` is the text's own."""
    return re.sub("</?b>", "", text.replace("<br>", " "))


def _paragraph(row: TaskRow) -> list[Example]:
    """MultiRC: is this answer to that question right."""
    truth = label(row, BOOLEAN_CLASSES)
    if truth is None:
        return []
    question, answer, paragraph = (_without_markup(text(row, name)) for name in ("question", "answer", "paragraph"))
    parts: list[str | Passage] = ["multirc question:", question, "answer:", answer, "paragraph:", Passage(paragraph)]
    key = (row["idx"]["paragraph"], row["idx"]["question"])
    return [example(parts, BOOLEAN_CLASSES[truth], (key, truth))]


def _cloze(row: TaskRow) -> list[Example]:
    """ReCoRD: which entity fills the gap. Trained on every accepted one, scored once."""
    passage = _SENTENCE_ENDS.sub(r"\1 ", text(row, "passage")).replace("\n@highlight\n", ". ")
    if isinstance(row["entities"], str):
        raise RowError("entities", row["entities"], "no list of texts")
    # Each once and sorted, as in the files that T5 read.
    entities, accepted = sorted(set(texts(row["entities"], "entities"))), sorted(set(texts(row["answers"], "answers")))
    parts: list[str | Passage] = [
        "record query:",
        text(row, "query"),
        "entities:",
        ", ".join(entities),
        "passage:",
        Passage(passage),
    ]
    return [example(parts, one, accepted, evaluates=n == 0) for n, one in enumerate(accepted)]


def _sense(row: TaskRow) -> list[Example]:
    """WiC: is a word used in the same sense."""
    truth = label(row, BOOLEAN_CLASSES)
    if truth is None:
        return []
    first, second = Passage(text(row, "sentence1")), Passage(text(row, "sentence2"))
    parts: list[str | Passage] = ["wic sentence1:", first, "sentence2:", second, "word:", text(row, "word")]
    return [example(parts, BOOLEAN_CLASSES[truth], truth)]


def _pronoun(row: TaskRow) -> list[Example]:
    """WSC: what does the starred pronoun mean. Only rows whose noun is right have a text to train on."""
    truth, noun = label(row, BOOLEAN_CLASSES), text(row, "span1_text")
    if truth is None:
        return []
    before, after = marked(text(row, "text"), text(row, "span2_text"), int(row["span2_index"]))
    parts: list[str | Passage] = ["wsc:", before, *([Passage(after)] if after else [])]
    return [example(parts, noun, (noun, truth), trains=truth == 1)]


def _same_noun(predictions: Sequence[str], references: Sequence[tuple[str, int]]) -> dict[str, float]:
    """WSC's accuracy: whether the written noun is the row's should be as the label says; no noun is never right."""
    said = [same_noun(text, noun) for text, (noun, _) in zip(predictions, references, strict=True)]
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
        passages=("passage",),
    ),
    classification(
        "cb",
        _hub("cb"),
        ("hypothesis", "premise"),
        ("entailment", "contradiction", "neutral"),
        combined_metrics(accuracy, macro_f1(3)),
        "does a premise commit its author to a hypothesis",
        passages=("premise",),
    ),
    classification(
        "copa",
        _hub("copa"),
        ("choice1", "choice2", "premise", "question"),
        _CHOICES,
        accuracy,
        "cause or effect",
        passages=("premise",),
    ),
    Task(
        "multirc",
        "which answers about a paragraph are right",
        _hub("multirc"),
        ("paragraph", "question", "answer", "idx", "label"),
        _paragraph,
        choice(BOOLEAN_CLASSES),
        multirc_scores,
        BOOLEAN_CLASSES,
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
        passages=("premise",),
    ),
    Task(
        "wic",
        "is a word used in the same sense",
        _hub("wic"),
        ("word", "sentence1", "sentence2", "label"),
        _sense,
        choice(BOOLEAN_CLASSES),
        accuracy,
        BOOLEAN_CLASSES,
    ),
    Task(
        "wsc",
        "what a pronoun refers to",
        _hub("wsc.fixed"),
        ("text", "span1_text", "span2_text", "span2_index", "label"),
        _pronoun,
        _text,
        _same_noun,
    ),
)
