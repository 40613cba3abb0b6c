"""The 245 points of Chinchilla that Besiroglu et al. read off a figure (arXiv 2404.10102).

They are data/svg_extracted_data.csv of github.com/epoch-research/analyzing-chinchilla. That has no licence: not copied.
    ALTUP_CHINCHILLA_POINTS=svg_extracted_data.csv python -m pytest tests/unit/study/scaling/test_chinchilla.py
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.records import Point

FILE = os.environ.get("ALTUP_CHINCHILLA_POINTS")

pytestmark = pytest.mark.skipif(not FILE, reason="ALTUP_CHINCHILLA_POINTS names no file with the points")


def points() -> list[Point]:
    """Each point is a run. Tokens are FLOPs / 6 N. The five highest losses are left out, as in the paper."""
    with Path(str(FILE)).open(encoding="utf-8") as lines:
        rows = [
            {name: float(row[name]) for name in ("Model Size", "Training FLOP", "loss")}
            for row in csv.DictReader(lines)
        ]
    assert len(rows) == 245
    kept = sorted(rows, key=lambda row: row["loss"])[:-5]
    return [
        Point(row["Model Size"], row["Training FLOP"] / 6 / row["Model Size"], row["loss"], "chinchilla", str(i))
        for i, row in enumerate(kept)
    ]


def test_hoffmanns_objective_gives_the_re_analysis_coefficients() -> None:
    """With delta 1e-3 their notebook ends at an objective of 0.001018274, A 477.84 and B 2143.9.

    Published are E 1.8172, A 482.01, alpha 0.3478, B 2085.43 and beta 0.3658: for these it also fits a scale of the
    residuals, so small that Huber's loss is the absolute value.
    """
    fitted = fit(points(), delta=1e-3)
    law = fitted.family("chinchilla")
    assert float(fitted.groups[0].solution.cost[0]) == pytest.approx(0.00101827403, rel=1e-7)
    assert (law.e, law.alpha, law.beta) == pytest.approx((1.8172, 0.3473, 0.3672), abs=1e-4)
    assert (law.a, law.b) == pytest.approx((477.84, 2143.9), rel=1e-3)
    absolute = fit(points(), delta=1e-5).family("chinchilla")
    assert (absolute.e, absolute.alpha, absolute.beta) == pytest.approx((1.8172, 0.3478, 0.3658), abs=1e-3)
    assert (absolute.a, absolute.b) == pytest.approx((482.01, 2085.43), rel=5e-3)
