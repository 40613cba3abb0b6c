"""The tasks once more, from their official definitions, in numpy alone: what a row reads as, and what answers score.

Sources, read and written anew: texts are those of t5 0.9.4's preprocessors (`glue`, `stsb`, `wsc_simple`, `record`)
on TFDS' features (arXiv 1910.10683, appendix D); answers are read as its postprocessors do. SQuAD's, ReCoRD's and
MultiRC's figures are those of their official scripts, GLUE's and SuperGLUE's of arXiv 1804.07461 and 1905.00537. Where
these differ from t5's code, the benchmark's holds: STS-B compares with the labels themselves, not with the rounded
targets, and SQuAD's punctuation is not set apart. An undefined correlation (of a constant) is 0 here and NaN there.
"""

from __future__ import annotations

import math
import string
from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import numpy as np

Row = dict[str, Any]
NLI, TWO = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
# Task -> (t5's name, columns in alphabetical order or as t5 orders them, TFDS' names of the classes).
CLASSIFIED: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "boolq": ("boolq", ("passage", "question"), ("False", "True")),
    "cb": ("cb", ("hypothesis", "premise"), ("entailment", "contradiction", "neutral")),
    "copa": ("copa", ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")),
    "multirc": ("multirc", ("question", "answer", "paragraph"), ("False", "True")),
    "rte": ("rte", ("hypothesis", "premise"), TWO),
    "wic": ("wic", ("sentence1", "sentence2", "word"), ("False", "True")),
    "cola": ("cola", ("sentence",), ("unacceptable", "acceptable")),
    "sst2": ("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": ("mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qqp": ("qqp", ("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": ("mnli", ("hypothesis", "premise"), NLI),
    "qnli": ("qnli", ("question", "sentence"), TWO),
    "glue_rte": ("rte", ("sentence1", "sentence2"), TWO),
    "wnli": ("wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment")),
    "rotten-tomatoes": ("sst2", ("text",), ("negative", "positive")),
}
SQUAD = ("squad", "squad-bigbench", "squad-bigbench-sentences")


def inputs(task: str, row: Row) -> str:
    """What t5 lets a model read."""
    if task in CLASSIFIED:
        name, columns, _ = CLASSIFIED[task]
        if task == "rotten-tomatoes":
            return f"sst2 sentence: {row['text']}"
        words = [name]
        for column in columns:
            words += [column + ":", row[column]]
        joined = " ".join(words)
        if task == "multirc":
            for markup, plain in (("<br>", " "), ("<b>", ""), ("</b>", "")):
                joined = joined.replace(markup, plain)
        return joined
    if task == "stsb":
        return "stsb sentence1: " + row["sentence1"] + " sentence2: " + row["sentence2"]
    if task == "record":
        passage = row["passage"]
        for mark in ".?!\"'":
            passage = passage.replace(mark + "\n@highlight\n", mark + " ")
        passage = passage.replace("\n@highlight\n", ". ")
        entities = ", ".join(sorted(set(row["entities"])))
        return f"record query: {row['query']} entities: {entities} passage: {passage}"
    if task == "wsc":
        words = row["text"].split(" ")
        words[row["span2_index"]] = "*" + row["span2_text"] + "*"
        return "wsc: " + " ".join(words)
    return f"question: {row['question'].strip()} context: {row['context'].strip()}"


def targets(task: str, row: Row, label: Any) -> list[str]:
    """What t5 lets a model write, one text an example. ``label``: class index or score, without spellings."""
    if task in CLASSIFIED:
        return [CLASSIFIED[task][2][label]]
    if task == "stsb":
        fifths = Decimal(str(float(np.float32(label) * np.float32(5)))).quantize(Decimal(1), ROUND_HALF_EVEN)
        return [f"{fifths / 5:.1f}"]
    if task == "record":
        return sorted(set(row["answers"]))
    return [row["span1_text"]] if task == "wsc" else [row["answers"]["text"][0]]


def scores(task: str, rows: Sequence[Row], labels: Sequence[Any], answers: Sequence[str]) -> dict[str, float]:
    """The benchmark's figures in percent. ``labels`` as for `targets`; white space around an answer does not count."""
    texts = [answer.strip() for answer in answers]
    if task in ("record", *SQUAD):
        accepted = [row["answers"] if task == "record" else row["answers"]["text"] for row in rows]
        exact = [max(plain(t) == plain(one) for one in some) for t, some in zip(texts, accepted, strict=True)]
        overlap = [max(word_overlap(t, one) for one in some) for t, some in zip(texts, accepted, strict=True)]
        return {"em": percent(exact), "f1": percent(overlap)}
    if task == "stsb":
        said = np.array([number(text) for text in texts])
        truth = np.array(labels, dtype=float)
        return {"pearson": 100 * pearson(said, truth), "spearman": 100 * pearson(ranks(said), ranks(truth))}
    if task == "wsc":
        found = [means(answer, row["span1_text"]) for answer, row in zip(answers, rows, strict=True)]
        return {"accuracy": percent(f == label for f, label in zip(found, labels, strict=True))}
    names = CLASSIFIED[task][2]
    said = np.array([names.index(text) if text in names else -1 for text in texts])
    truth = np.array(labels)
    exact_share = {"accuracy": percent(said == truth)}
    if task == "cola":
        return {"matthews": 100 * matthews(said, truth)}
    if task in ("mrpc", "qqp"):
        return {"f1": 100 * f1_with_invalid(said, truth), **exact_share}
    if task == "cb":
        f1s = [f1_of(said == n, truth == n) for n in range(3)]
        return {**exact_share, "f1": 100 * sum(f1s) / 3}
    if task == "multirc":
        groups = defaultdict(list)
        for row, one, right in zip(rows, said, truth, strict=True):
            groups[row["idx"]["paragraph"], row["idx"]["question"]].append(one == right)
        return {"f1a": 100 * f1_with_invalid(said, truth), "em": percent(all(group) for group in groups.values())}
    return exact_share


def plain(text: str) -> str:
    """The official SQuAD script's normalisation, letter by letter and word by word."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    words, word = [], ""
    for letter in kept + " ":  # an article is a run of word characters that stands alone
        if letter.isalnum() or letter == "_":
            word += letter
        else:
            words += ["" if word in ("a", "an", "the") else word, letter]
            word = ""
    return " ".join("".join(part or " " for part in words).split())


def word_overlap(text: str, accepted: str) -> float:
    """Harmonic mean of the shares of common words."""
    said, right = plain(text).split(), plain(accepted).split()
    rest = list(right)
    common = 0
    for word in said:
        if word in rest:
            rest.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


def means(answer: str, noun: str) -> int:
    """t5's `wsc_simple`: 1 the noun, 0 another one, -1 nothing."""
    determiners = ["a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the"]
    determiners += ["their", "these", "this", "those", "which", "whose", "your"]
    said, meant = (
        [word for word in text.strip().lower().split(" ") if word not in determiners] for text in (answer, noun)
    )
    if " ".join(said) == "":
        return -1
    meant = meant or [""]
    if any("'" in word for word in said) is not any("'" in word for word in meant):
        return 0
    return int(all(word in meant for word in said) or all(word in said for word in meant))


def number(text: str) -> float:
    """t5's `string_to_float`; what is no finite number is -1 too, as a mean of it would be none."""
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if math.isfinite(value) else -1.0


def percent(values: Any) -> float:
    """Mean times 100."""
    return 100 * float(np.mean([float(value) for value in values]))


def f1_of(said: np.ndarray, truth: np.ndarray) -> float:
    """F1 of a class from who said it and whose it is; 0 where it is undefined."""
    hits, either = int((said & truth).sum()), int(said.sum() + truth.sum())
    return 2 * hits / either if either else 0.0


def f1_with_invalid(said: np.ndarray, truth: np.ndarray) -> float:
    """F1 of class 1; an answer that is no class is the opposite of the right one."""
    return f1_of(np.where(said < 0, 1 - truth, said) == 1, truth == 1)


def matthews(said: np.ndarray, truth: np.ndarray) -> float:
    """Gorodkin's coefficient of K classes (2004), the answers that are no class one more."""
    kinds = (-1, 0, 1)
    table = np.array([[np.sum((truth == t) & (said == s)) for s in kinds] for t in kinds], dtype=float)
    of, as_, total = table.sum(1), table.sum(0), table.sum()
    over = np.trace(table) * total - of @ as_
    under = math.sqrt((total**2 - as_ @ as_) * (total**2 - of @ of))
    return float(over / under) if under else 0.0


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's coefficient; 0 for a constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, equals sharing their mean."""
    return np.array([(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values])
