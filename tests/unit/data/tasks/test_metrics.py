"""Metrics on cases done by hand."""

from __future__ import annotations

import pytest

from altup_moe.data.tasks.metrics import (
    accuracy,
    combined_metrics,
    correlations,
    f1,
    macro_f1,
    matthews,
    multirc_scores,
    normalised,
    squad_scores,
    word_f1,
)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat!", "cat"),
        ("a U.S. senator, an\tex-actor", "us senator exactor"),
        ("theatre of the absurd", "theatre of absurd"),
        ("$1,000", "1000"),
        ("the", ""),
        ("Änne\u201ds", "änne\u201ds"),  # only ASCII punctuation is dropped, as in the official script
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("text", "accepted", "value"),
    [
        ("Denver Broncos", "The Denver Broncos!", 1.0),
        ("Denver", "Denver Broncos", 2 / 3),
        ("the the Denver Denver", "Denver Broncos", 0.5),  # common words count as often as both have them
        ("Carolina", "Denver", 0.0),
        ("", "", 0.0),
    ],
)
def test_word_f1(text: str, accepted: str, value: float) -> None:
    assert word_f1(text, accepted) == pytest.approx(value)


def test_answers_take_the_best_of_those_accepted() -> None:
    figures = squad_scores(["Denver", "gold"], [["the Denver Broncos", "Denver!"], ["gold color", "golden"]])
    assert figures == {"em": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_classification() -> None:
    assert accuracy([1, 0, -1, 1], [1, 1, 0, 1]) == {"accuracy": 50.0}
    # Class 1: precision 2/3, recall 2/3; an answer that is no class is the wrong one.
    assert f1([1, 1, 1, -1], [1, 1, 0, 1]) == {"f1": pytest.approx(200 / 3)}
    assert f1([1, 1, 1, -1, -1], [1, 1, 0, 1, 0]) == {"f1": pytest.approx(400 / 7)}
    # F1s 2/3, 0 and 1: never answering class 1 is not hidden by the others.
    assert macro_f1(3)([0, 0, 2], [0, 1, 2]) == {"f1": pytest.approx(100 * (2 / 3 + 0 + 1) / 3)}
    assert matthews([1, 1, 0, 0], [1, 0, 1, 0]) == {"matthews": 0.0}
    assert matthews([1, 1, 0, 1], [1, 1, 0, 0]) == {"matthews": pytest.approx(100 * 2 / 12**0.5)}
    assert matthews([1, 1, 1], [1, 0, 1]) == {"matthews": 0.0}
    assert combined_metrics(accuracy, f1)([1], [1]) == {"accuracy": 100.0, "f1": 100.0}


def test_correlations() -> None:
    found = correlations([1.0, 2.0, 10.0], [1.0, 2.0, 3.0])
    assert found["spearman"] == pytest.approx(100)
    assert found["pearson"] == pytest.approx(91.22, abs=0.01)
    assert correlations([2.0, 2.0], [1.0, 2.0]) == {"pearson": 0.0, "spearman": 0.0}


def test_grouped_answers() -> None:
    figures = multirc_scores([1, 0, 1, 1], [("q", 1), ("q", 0), ("r", 1), ("r", 0)])
    assert figures == {"f1a": pytest.approx(80.0), "em": 50.0}
