"""The tables of designs beside each other, with delayed outputs and without: in pairs of seeds, adjusted by column."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from altup_moe.study.records import StudyRow
from docs.generate.pairs import Column, delayed_columns, longer_text, pair_tables
from tests.studies import row

NOISE = np.array([0.3, -0.2, 0.1, 0.5])
"""What a seed does to all models."""


def rows(family: str, size: int, gap: float, seeds: int = 4) -> list[StudyRow]:
    """Of two numbers of tokens; 0.1 nats better with the larger one."""
    return [
        replace(
            row(f"{family}-d{size}-t{tokens}", seed, 4.0 + NOISE[seed] + gap * (1 + 0.1 * seed) - less, family=family),
            overrides={"model.hidden_size": size},
            tokens=tokens,
            steps=tokens // 1000,
        )
        for tokens, less in ((3000, 0.0), (4000, 0.1))
        for seed in range(seeds)
    ]


STUDY = [*rows("a", 16, 0.0), *rows("a-later", 16, -0.02), *rows("b", 16, 0.0), *rows("b-later", 16, 0.01)]
PAIRS = {"first": ("a-later", "a"), "second": ("b-later", "b")}


def cells(lines: list[str]) -> list[list[str]]:
    """Of the lines of a table below its head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_designs_are_compared_seed_by_seed() -> None:
    lines = pair_tables(STUDY, PAIRS, delayed_columns(STUDY))
    assert "equal steps, 3 | equal steps, 4 | equal seconds, 4 against 3" in lines[0]
    (first, second), (mean,) = cells(lines[:4]), cells(lines[5:])
    assert first[:3] == ["16", "first", "4"]
    gaps = -0.02 * (1 + 0.1 * np.arange(4))
    ends = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    p = 2 * stats.ttest_1samp(gaps, 0).pvalue  # of two designs, both as certain
    assert first[3] == f"**{gaps.mean():+.3f} [{ends.low:+.3f}, {ends.high:+.3f}], p < 0.001**"
    assert p < 0.001
    assert second[3].startswith("**+0.011 [")
    # The longer run of one beside the shorter one of the other.
    assert first[5].startswith(f"**{gaps.mean() - 0.1:+.3f} [")
    assert mean[1] == "mean"
    assert mean[3].startswith(f"**{gaps.mean() / 4:+.3f} [")
    assert longer_text(STUDY, PAIRS, delayed_columns(STUDY)[-1]).endswith("mean of 2 designs: -0.100 at width 16.")


def test_a_column_may_leave_a_design_out() -> None:
    column = Column("some", 4000, 3000, without=("first",))
    lines = pair_tables(STUDY, PAIRS, [column])
    (first, second), (mean,) = cells(lines[:4]), cells(lines[5:])
    assert (first[3], second[3]) == ("-", mean[3])
    assert longer_text(STUDY, PAIRS, column).endswith("mean of 1 designs: -0.100 at width 16.")


def test_a_column_is_adjusted_together() -> None:
    wobbly = [
        replace(one, quality=replace(one.quality, valid_loss=one.quality.valid_loss + 0.01 * (-1) ** one.seed))
        if one.family == "b-later" and one.quality is not None
        else one
        for one in STUDY
    ]
    column = [Column("same", 3000, 3000)]

    def p(pairs: dict[str, tuple[str, str]]) -> float:
        """That of the last design but the mean over all."""
        return float(cells(pair_tables(wobbly, pairs, column)[: 2 + len(pairs)])[-1][3].rpartition("p ")[2])

    single = p({"second": PAIRS["second"]})
    assert 0.05 < single < 0.5
    assert p(PAIRS) == pytest.approx(single, rel=0.02)  # the larger of two: Holm leaves it
    twice = p({"second": PAIRS["second"], "again": PAIRS["second"]})
    assert twice == pytest.approx(2 * single, rel=0.05)
