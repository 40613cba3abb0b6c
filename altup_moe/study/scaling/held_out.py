"""Leave the largest size out, and predict it (`predict_largest`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altup_moe.config import UserError
from altup_moe.study.scaling.bootstrap import DRAWS, LEVEL, Draws, bootstrap
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.records import Array, Interval, Point, interval


@dataclass(frozen=True)
class Prediction:
    """A cell that was held out.

    measured: its mean loss over `runs` runs. predicted: by the law of the smaller sizes. interval: such a mean's.
    """

    family: str
    n: float
    d: float
    runs: int
    measured: float
    predicted: float
    interval: Interval

    @property
    def inside(self) -> bool:
        """Whether the measured mean lies inside the interval."""
        return self.interval.holds(self.measured)


def predict_largest(
    points: Sequence[Point],
    *,
    shared: bool = False,
    delta: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Prediction]:
    """Fit without each family's largest size and predict it: a prediction for each of its token counts.

    The interval has the law's uncertainty and the noise of as many runs as were measured. Arguments are as in `fit` and
    `bootstrap`. Cells of one size share their runs: that all three are inside is not three answers.

    Raises:
        UserError: as `fit` and `bootstrap`, for what is left; a fit needs three sizes without the largest.
    """
    largest = {name: max(p.n for p in points if p.family == name) for name in {p.family for p in points}}
    kept = [point for point in points if point.n < largest[point.family]]
    if not kept:
        raise UserError("the largest size cannot be held out: there is only one")
    found = bootstrap(fit(kept, shared=shared, delta=delta), draws=draws, seed=seed)
    cells: dict[tuple[str, float, float], list[float]] = {}
    for point in points:
        if point.n == largest[point.family]:
            cells.setdefault((point.family, point.n, point.d), []).append(point.loss)
    generator = np.random.default_rng([seed, 1])
    return [_prediction(found, cell, np.array(losses), generator, level) for cell, losses in cells.items()]


def _prediction(
    found: Draws, cell: tuple[str, float, float], losses: Array, generator: np.random.Generator, level: float
) -> Prediction:
    family, n, d = cell
    pool = found.freed[[i for i, point in enumerate(found.fit.points) if point.family == family]]
    pool = pool - pool.mean()
    noise = pool[generator.integers(0, len(pool), (len(found.e), len(losses)))].mean(1)
    expected = interval(found.loss(family, n, d) * np.exp(noise), level)
    law = found.fit.family(family).loss(n, d)
    return Prediction(family, n, d, len(losses), float(losses.mean()), law, expected)
