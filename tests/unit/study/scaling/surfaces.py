"""Known surfaces with noise, as a ladder of a study would measure them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from altup_moe.study.scaling.records import Law, Point

SIZES = 1e6 * 2.5 ** np.arange(4)
MULTIPLES = (10, 20, 40)
SEEDS = 3


@dataclass(frozen=True)
class Surface:
    """A law that is known, the points measured on it, and the spread of a run's loss, nats."""

    law: Law
    points: list[Point]
    spread: float


def random_law(
    generator: np.random.Generator, sizes: np.ndarray = SIZES, multiples: tuple[int, ...] = MULTIPLES
) -> Law:
    """E of 1.5 to 2.5 nats, exponents of 0.25 to 0.45, and terms of 0.4 to 1.2 nats in the middle of the ladder."""
    alpha, beta = generator.uniform(0.25, 0.45, 2)
    of_n, of_d = generator.uniform(0.4, 1.2, 2)
    n = np.exp(np.log(sizes).mean())
    d = n * np.exp(np.log(multiples).mean())
    return Law(
        float(generator.uniform(1.5, 2.5)), float(of_n * n**alpha), float(alpha), float(of_d * d**beta), float(beta)
    )


def measured(
    law: Law,
    generator: np.random.Generator,
    spread: float,
    *,
    family: str = "dense",
    seeds: int = SEEDS,
    sizes: np.ndarray = SIZES,
    multiples: tuple[int, ...] = MULTIPLES,
    common: float = 0.5,
    timing: float = 0.02,
    cost: float = 6.0,
) -> list[Point]:
    """Points of a ladder.

    common: the share of the variance that the points of one run have in common (it branches to each token count).
    cost: FLOPs a token and parameter. Seconds are FLOPs at 1e12 a second; `timing` is the share of noise of a run.
    """
    points = []
    for n in sizes:
        for seed in range(seeds):
            run = f"{family}-{n:.3g}-{seed}"
            shared = np.sqrt(common) * generator.standard_normal()
            slow = np.exp(timing * generator.standard_normal())
            for multiple in multiples:
                own = np.sqrt(1 - common) * generator.standard_normal()
                flops = cost * n * n * multiple
                loss = law.loss(n, n * multiple) + spread * (shared + own)
                points.append(Point(n, n * multiple, loss, family, run, flops=flops, seconds=flops / 1e12 * slow))
    return points


def random_surface(number: int, **ladder: object) -> Surface:
    """Surface `number`: a law, a spread of 0.003 to 0.01 nats over seeds, and its points."""
    generator = np.random.default_rng([20, number])
    law = random_law(generator)
    spread = float(generator.uniform(0.003, 0.01))
    return Surface(law, measured(law, generator, spread, **ladder), spread)  # type: ignore[arg-type]
