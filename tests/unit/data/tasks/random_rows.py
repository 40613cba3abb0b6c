"""Random rows of every task with their labels in every known spelling, and random answers to them (hypothesis)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.unit.data.tasks import official
from tests.unit.data.tasks.official import CLASSIFIED, Row

WORDS = (
    *("the", "a", "cat", "Cat", "sat", "dog's", "dog", "x<5", "y>3", "<i>", "<br>", "<b>Sent", "1:", "</b>", "won."),
    *(
        "an",
        "U.S.",
        "@highlight",
        "Änne",
        "$1,000",
        "his",
        "\u201dso\u201d",
        "question:",
        "True",
        "1",
        "e\u0301",
        "日本",
    ),
    *("won?\n@highlight\nBob", "lost\n@highlight\nHe", "(hat)", "  ", "don't", "entailment", "choice1", "tab\tword"),
    *("not_entailment", "not", "日本"),
)
NO_LABEL: tuple[Any, ...] = (None, -1, "-1", "", "-", -1.0, float("nan"))
NUMBERS = ("nan", "inf", "1e0", " 2.0 ", "-1", "four", "3,5", "5.0", "0.4", "1_0")

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)
lone_words = st.sampled_from([word for word in WORDS if " " not in word and word.strip() and word != "X"])
answer_lists = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=3)


@dataclass(frozen=True)
class LabelledRow:
    """A row, what its label means (class index or score; None for no label), and an answer to it."""

    row: Row
    label: Any
    answer: str


@st.composite
def labelled_rows(draw: st.DrawFn, task: str) -> LabelledRow:
    """One row in nine has no label."""
    label = None if draw(st.integers(0, 8)) == 0 else 0
    if task in CLASSIFIED:
        _, columns, classes = CLASSIFIED[task]
        row: Row = {column: draw(texts) for column in columns}
        if label is not None:
            label = draw(st.integers(0, len(classes) - 1))
        row["label"] = draw(st.sampled_from(NO_LABEL if label is None else spellings(classes, label)))
        if task == "multirc":
            row["idx"] = {"paragraph": draw(st.integers(0, 1)), "question": draw(st.integers(0, 1)), "answer": 0}
        return LabelledRow(row, label, draw(st.sampled_from(("", "x", *classes, *(around(name) for name in classes)))))
    if task == "stsb":
        row = {"sentence1": draw(texts), "sentence2": draw(texts)}
        if label is not None:
            label = draw(st.integers(0, 50).map(lambda n: n / 10) | st.floats(0, 5))
        row["label"] = draw(st.sampled_from(NO_LABEL if label is None else (label, repr(label))))
        return LabelledRow(row, label, draw(st.sampled_from(NUMBERS) | st.floats(-1, 6).map(repr)))
    if task == "wsc":
        before, after, pronoun = draw(texts), draw(texts), draw(lone_words)
        words = before.split(" ")
        row = {"text": " ".join([*words, pronoun, after]), "span2_text": pronoun, "span2_index": len(words)}
        row["span1_text"] = draw(texts)
        label = None if label is None else draw(st.integers(0, 1))
        row["label"] = draw(st.sampled_from(NO_LABEL if label is None else spellings(("False", "True"), label)))
        near = (row["span1_text"], row["span1_text"].split(" ")[-1], "the " + row["span1_text"].upper())
        return LabelledRow(row, label, draw(st.sampled_from(near) | texts | st.just(" ")))
    accepted = [] if label is None else draw(answer_lists)
    if task == "record":
        row = {name: draw(texts) for name in ("passage", "query")}
        row |= {"entities": draw(answer_lists), "answers": accepted}
    else:
        context = draw(texts)
        starts = [0 for _ in accepted]
        row = {"question": draw(texts), "context": context, "answers": {"text": accepted, "answer_start": starts}}
    near = [text for one in accepted for text in (one, around(one), f"The {one}!", one.partition(" ")[0])]
    return LabelledRow(row, label, draw(st.sampled_from([*near, "", "a"]) | texts))


def spellings(classes: tuple[str, ...], label: int) -> tuple[Any, ...]:
    """A label as data sets spell it."""
    name = classes[label]
    known: list[Any] = [label, str(label), float(label), f"{label}.0", name, name.upper(), f" {name.title()} "]
    known += [name.replace("_", " "), name.replace("_", "-")]
    if classes == ("False", "True"):
        known += [bool(label), "FT"[label], ("no", "Yes")[label]]
    return tuple(known)


def around(name: str) -> str:
    """With white space around it."""
    return f" {name}\n"


def expected_inputs(task: str, row: Row) -> str | None:
    """What t5 reads; None for the task that is none of a benchmark's."""
    return None if task == "squad-bigbench-sentences" else official.inputs(task, row)
