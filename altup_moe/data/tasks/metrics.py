"""Metrics of answers in percent: from scikit-learn and scipy where they exist, SQuAD's by its official rules."""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Fraction of correct answers."""
    return {"accuracy": _share(p == r for p, r in zip(predictions, references, strict=True))}


def f1(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    """F1 of class 1 of two. An answer that is no class counts as the wrong one, as in T5's `f1_score_with_invalid`."""
    said = [p if p in (0, 1) else 1 - r for p, r in zip(predictions, references, strict=True)]
    return {"f1": _f1(said, references, [1])}


def macro_f1(classes: int) -> Callable[[Sequence[int], Sequence[int]], dict[str, float]]:
    """Mean F1 over the classes; an answer that names no class is a false negative of its reference class."""
    return lambda predictions, references: {"f1": _f1(predictions, references, list(range(classes)))}


def matthews(predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
    """Matthews' correlation coefficient; 0 for a constant answer. An answer that is no class is a third one."""
    from sklearn.metrics import matthews_corrcoef  # half a second of import

    return {"matthews": 100 * float(matthews_corrcoef(references, predictions))}


def correlations(predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
    """Pearson's and Spearman's coefficients; 0 for a constant answer."""
    from scipy import stats

    if len(set(predictions)) < 2 or len(set(references)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    pearson, spearman = stats.pearsonr(predictions, references), stats.spearmanr(predictions, references)
    return {"pearson": 100 * float(pearson.statistic), "spearman": 100 * float(spearman.statistic)}


def combined_metrics(*metrics: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]) -> Callable:
    """One metric that computes all of `metrics`."""
    return lambda predictions, references: {
        name: value for metric in metrics for name, value in metric(predictions, references).items()
    }


def multirc_scores(predictions: Sequence[int], references: Sequence[tuple[Any, int]]) -> dict[str, float]:
    """MultiRC: F1 over all answers (f1a), and the share of questions whose answers are all judged right (em).

    Args:
        references: (question, whether this answer to it is right).
    """
    right: dict[Any, list[bool]] = defaultdict(list)
    for prediction, (question, truth) in zip(predictions, references, strict=True):
        right[question].append(prediction == truth)
    truths = [truth for _, truth in references]
    return {"f1a": f1(predictions, truths)["f1"], "em": _share(all(answers) for answers in right.values())}


def squad_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """SQuAD 1.1: exact match and word F1 after normalisation, each against the best of the accepted answers."""
    pairs = list(zip(predictions, references, strict=True))
    return {
        "em": _share(any(normalised(text) == normalised(one) for one in accepted) for text, accepted in pairs),
        "f1": 100 * float(np.mean([max(word_f1(text, one) for one in accepted) for text, accepted in pairs])),
    }


def normalised(text: str) -> str:
    """An answer in lower case, without punctuation, articles and repeated white space (SQuAD's official rules)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def word_f1(text: str, accepted: str) -> float:
    """F1 of the words of two answers, in [0, 1]."""
    ours, theirs = normalised(text).split(), normalised(accepted).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _f1(predictions: Sequence[int], references: Sequence[int], labels: list[int]) -> float:
    from sklearn.metrics import f1_score

    return 100 * float(f1_score(references, predictions, labels=labels, average="macro", zero_division=0))


def _share(right: Any) -> float:
    return 100 * float(np.mean(list(right)))
