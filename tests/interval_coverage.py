"""Print how often the report's intervals hold the true value: `python -m tests.interval_coverage`.

Studies are simulated: the figures of seeds are normal, latencies log-normal. In 95 of 100 an interval should hold the
truth. The last columns are Welch's interval of models that share half of what seeds do to them (sizes of a family that
read the same text), which holds more than it says, and the percentile bootstrap that the report gave up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from altup_moe.study.report.intervals import Estimate, Floats, difference, mean, total
from altup_moe.study.report.statistics import log_ratio_terms

SEEDS = (2, 3, 5, 8, 10)
STUDIES = 40_000
DRAWS = 1000
SHARED = 0.05
"""What a seed does to both models of a pair, beside the 0.01 of each."""


def held(found: Estimate, truth: float) -> float:
    """Share of the intervals that hold the truth."""
    return float(((found.low <= truth) & (truth <= found.high)).mean())


def own_loss(draw: np.random.Generator, seeds: int, studies: int) -> float:
    """The t interval of a model's own loss."""
    return held(mean(draw.normal(3.0, 0.01, (studies, seeds))), 3.0)


def pairs(draw: np.random.Generator, seeds: int, studies: int, shared: float = SHARED) -> tuple[Floats, Floats]:
    """Losses of two models 0.02 apart; a seed moves both of them five times as far as each alone."""
    both = draw.normal(3.0, shared, (studies, seeds))
    return both + draw.normal(0.0, 0.01, both.shape), both + draw.normal(0.02, 0.01, both.shape)


def paired(draw: np.random.Generator, seeds: int, studies: int) -> float:
    """The paired t interval of a difference of losses."""
    return held(difference(*pairs(draw, seeds, studies), paired=True), -0.02)


def welch(draw: np.random.Generator, seeds: int, studies: int, times: float = 1.0) -> float:
    """Welch's interval of a difference of losses; the second model's spread is `times` the first's."""
    ours, theirs = (draw.normal(at, s, (studies, seeds)) for at, s in ((3.0, 0.01), (3.02, times * 0.01)))
    return held(difference(ours, theirs, paired=False), -0.02)


def welch_of_shared(draw: np.random.Generator, seeds: int, studies: int) -> float:
    """Welch's interval where a seed moves both models as far as each alone."""
    return held(difference(*pairs(draw, seeds, studies, shared=0.01), paired=False), -0.02)


def latency(draw: np.random.Generator, seeds: int, studies: int) -> float:
    """The interval of a ratio of latencies, on the logarithm: log-normal, 3 and 5 %."""
    ours, theirs = (np.log(draw.lognormal(at, s, (studies, seeds))) for at, s in ((5.0, 0.03), (4.8, 0.05)))
    return held(difference(ours, theirs, paired=False), 0.2)


def speed(draw: np.random.Generator, seeds: int, studies: int, noise: float = 0.01) -> float:
    """The interval of the speed at equal quality: a model half-way between two sizes whose losses are 0.2 apart."""

    def rows(ms: float, loss: float) -> Floats:
        figures = np.log(ms) + draw.normal(0, 0.02, (studies, seeds)), draw.normal(loss, noise, (studies, seeds))
        return np.stack(figures, axis=-1)

    found = total(log_ratio_terms(rows(130.0, 3.2), rows(110.0, 3.3), rows(230.0, 3.1)))
    return held(found, float(np.log(np.sqrt(110.0 * 230.0) / 130.0)))


def bootstrap(draw: np.random.Generator, seeds: int, studies: int) -> float:
    """The percentile bootstrap of a difference of losses, independent seeds: what the report printed before."""
    kept = 0
    for _ in range(studies):
        drawn = [one[draw.integers(0, seeds, (DRAWS, seeds))].mean(-1) for one in draw.normal(0.0, 0.01, (2, seeds))]
        ordered = np.sort(drawn[0] - drawn[1])
        kept += bool(ordered[int(0.025 * DRAWS)] <= 0 <= ordered[-int(0.025 * DRAWS) - 1])
    return kept / studies


Coverage = Callable[[np.random.Generator, int, int], float]
REPORTED: dict[str, Coverage] = {
    "own loss": own_loss,
    "pairs": paired,
    "Welch": welch,
    "Welch, 1 to 4": lambda draw, seeds, studies: welch(draw, seeds, studies, 4.0),
    "latency ratio": latency,
    "speed": speed,
}


def main() -> None:
    """Print a table: seeds down, intervals across, shares in percent."""
    print("seeds  " + "  ".join(f"{name:>13}" for name in (*REPORTED, "Welch, shared", "bootstrap")))
    for seeds in SEEDS:
        draw = np.random.default_rng(seeds)
        shares = [one(draw, seeds, STUDIES) for one in (*REPORTED.values(), welch_of_shared)]
        shares.append(bootstrap(draw, seeds, STUDIES // 10))
        print(f"{seeds:5}  " + "  ".join(f"{100 * share:13.1f}" for share in shares))


if __name__ == "__main__":
    main()
