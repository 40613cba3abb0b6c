"""How often the intervals of scaling laws hold the truth, on random known surfaces.

python -m tests.scaling_coverage [SURFACES [SEEDS [COMMON [DRAWS]]]]      200 surfaces, 3 seeds, 0.5, 1000 draws
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

import numpy as np

from altup_moe.study.scaling.bootstrap import bootstrap
from altup_moe.study.scaling.fit import fit, uncentred
from altup_moe.study.scaling.held_out import predict_largest
from altup_moe.study.scaling.multiplier import best, multiplier
from altup_moe.study.scaling.projection import minimise
from altup_moe.study.scaling.records import Law, interval
from tests.unit.study.scaling.surfaces import measured, random_law, random_surface

COEFFICIENTS = ("e", "a", "alpha", "b", "beta")


def law_intervals(surfaces: Iterable[int], draws: int = 1000, **ladder: object) -> dict[str, list[bool]]:
    """Figure -> whether its 90 % interval held the truth, for each surface: the coefficients, and a prediction at four
    times the largest size and tokens."""
    found: dict[str, list[bool]] = {name: [] for name in (*COEFFICIENTS, "prediction")}
    for number in surfaces:
        surface = random_surface(number, **ladder)
        drawn = bootstrap(fit(surface.points), draws=draws, seed=number)
        for name in COEFFICIENTS:
            found[name].append(drawn.coefficient("dense", name).holds(getattr(surface.law, name)))
        n, d = (4 * max(getattr(point, name) for point in surface.points) for name in ("n", "d"))
        found["prediction"].append(drawn.predicted("dense", n, d).holds(surface.law.loss(n, d)))
    return found


def case_intervals(surfaces: Iterable[int], draws: int = 1000, **ladder: object) -> dict[str, list[bool]]:
    """The same coefficients with whole runs drawn (cases), which is not what the package does."""
    found: dict[str, list[bool]] = {name: [] for name in COEFFICIENTS}
    for number in surfaces:
        surface = random_surface(number, **ladder)
        (group,) = fit(surface.points).groups
        runs = np.unique([point.run for point in surface.points], return_inverse=True)[1]
        drawn = np.random.default_rng(number).integers(0, runs.max() + 1, (draws, runs.max() + 1))
        counts = np.stack([np.bincount(one, minlength=runs.max() + 1) for one in drawn]).astype(float)
        losses = np.tile([point.loss for point in surface.points], (draws, 1))
        start = (np.repeat(group.solution.alpha, draws), np.repeat(group.solution.beta, draws))
        laws = uncentred(group, minimise(group.points, losses, counts[:, runs], group.delta, start))
        for name, law in zip(COEFFICIENTS, laws, strict=True):
            found[name].append(interval(law[:, 0], 0.9).holds(getattr(surface.law, name)))
    return found


def held_out(surfaces: Iterable[int], draws: int = 1000, **ladder: object) -> list[bool]:
    """Whether the largest size's mean at its middle token count was inside, for each surface."""
    return [
        predict_largest(random_surface(number, **ladder).points, draws=draws, seed=number)[1].inside
        for number in surfaces
    ]


def multipliers(surfaces: Iterable[int], draws: int = 1000) -> dict[str, list[bool]]:
    """Axis -> whether the multiplier's interval held the truth: a family of other A and B, and 1.2 times the cost."""
    found: dict[str, list[bool]] = {"flops": [], "seconds": []}
    for number in surfaces:
        generator = np.random.default_rng([21, number])
        law = random_law(generator)
        other = Law(law.e, law.a * generator.uniform(0.8, 1), law.alpha, law.b * generator.uniform(0.8, 1), law.beta)
        spread = float(generator.uniform(0.003, 0.01))
        points = measured(law, generator, spread) + measured(other, generator, spread, family="altup", cost=7.2)
        drawn = bootstrap(fit(points, shared=True), draws=draws, seed=number)
        for axis in found:
            n, d = best(drawn, "altup", axis, 3e14 if axis == "flops" else 300.0)  # type: ignore[arg-type]
            seen = multiplier(drawn, "altup", "dense", axis, n=n, d=d)  # type: ignore[arg-type]
            found[axis].append(seen.interval.holds(true_multiplier(law, other.loss(n, d), 7.2 * n * d)))
    return found


def true_multiplier(law: Law, loss: float, cost: float) -> float:
    """The least 6 N D at which a law reaches a loss, in closed form, over a cost.

    With N D = C / 6 the derivative by log N is 0 where alpha A N^-alpha = beta B D^-beta.
    """
    left = loss - law.e
    of_n, of_d = (share * left / (law.alpha + law.beta) for share in (law.beta, law.alpha))
    return float(6 * (law.a / of_n) ** (1 / law.alpha) * (law.b / of_d) ** (1 / law.beta) / cost)


def main(arguments: list[str]) -> None:
    """Print the coverage of each figure in percent."""
    given = [*arguments, *("200", "3", "0.5", "1000")[len(arguments) :]]
    count, seeds, common, draws = int(given[0]), int(given[1]), float(given[2]), int(given[3])
    print(f"90 % intervals that held the truth, of {count} surfaces: 4 sizes x 3 token counts x {seeds} seeds,")
    print(f"{common:.0%} of the variance common to a run, {draws} draws")
    ladder = {"seeds": seeds, "common": common}
    _print(law_intervals(range(count), draws, **ladder))
    _print({"largest size, held out": held_out(range(count), draws, **ladder)})
    _print({f"multiplier, {axis}": held for axis, held in multipliers(range(count), draws).items()})
    cases = case_intervals(range(count), draws, **ladder)
    _print({f"{name}, whole runs drawn": held for name, held in cases.items()})


def _print(found: dict[str, list[bool]]) -> None:
    for name, held in found.items():
        print(f"{name:24} {100 * np.mean(held):5.1f} %", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
