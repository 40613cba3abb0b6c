"""Multipliers: on laws whose answer is known, and on published losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from altup_moe.config import UserError
from altup_moe.study.scaling.bootstrap import Draws, bootstrap
from altup_moe.study.scaling.costs import TokenCost, cheapest, drawn_token_cost, token_cost
from altup_moe.study.scaling.fit import fit
from altup_moe.study.scaling.multiplier import best, multiplier
from altup_moe.study.scaling.pinned import PinnedCurve
from altup_moe.study.scaling.records import Law, Point
from tests.scaling_coverage import true_multiplier
from tests.unit.study.scaling.surfaces import measured, random_surface

LAW = Law(1.8, 482.0, 0.348, 2085.0, 0.366)


def pair(better: float = 0.85, cost: float = 6.0, spread: float = 0.004) -> list[Point]:
    """Points of a dense family, and of another whose A and B are `better` times those."""
    law = random_surface(4).law
    other = Law(law.e, better * law.a, law.alpha, better * law.b, law.beta)
    generator = np.random.default_rng(1)
    return measured(law, generator, spread) + measured(other, generator, spread, family="altup", cost=cost)


def drawn(points: list[Point]) -> Draws:
    """A shared fit with few draws."""
    return bootstrap(fit(points, shared=True), draws=300)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_the_cheapest_way_is_the_closed_form(gamma: float) -> None:
    """Cost n^gamma a token: alpha A N^-alpha = gamma beta B D^-beta at the least cost."""
    sizes = np.array([1e6, 1e7, 1e8])
    cost = TokenCost(np.log(sizes), gamma * np.log(sizes)[None])
    found = cheapest(LAW, cost, 3.0)
    left = 3.0 - LAW.e
    share = gamma * LAW.beta / (LAW.alpha + gamma * LAW.beta)
    n, d = (LAW.a / (share * left)) ** (1 / LAW.alpha), (LAW.b / ((1 - share) * left)) ** (1 / LAW.beta)
    assert found.cost[0] == pytest.approx(n**gamma * d, rel=1e-4)
    assert found.n[0] == pytest.approx(n, rel=0.03)
    assert LAW.loss(float(found.n[0]), float(found.d[0])) == pytest.approx(3.0)


def test_a_loss_below_the_floor_costs_more_than_anything() -> None:
    cost = TokenCost(np.log([1e6, 1e7]), np.log([[1e6, 1e7]]))
    assert cheapest(LAW, cost, 1.7).cost[0] == np.inf


def test_costs_are_those_that_were_measured() -> None:
    points = [replace(p, seconds=p.d * p.n**0.5) for p in pair(spread=0.004)]
    rates = token_cost(fit(points), "dense", "seconds")
    assert rates.at([1e6, 2.5e6, 4e8])[0] == pytest.approx([1e3, 2.5e6**0.5, 2e4])
    assert rates.at(1.6e6)[0, 0] == pytest.approx(1.6e6**0.5)


def test_timing_noise_widens_seconds_alone() -> None:
    quiet, noisy = drawn(pair()), drawn([replace(p, seconds=p.seconds) for p in pair()])
    flops, seconds = (drawn_token_cost(noisy, "dense", axis).log_cost for axis in ("flops", "seconds"))
    assert np.ptp(flops, axis=0) == pytest.approx(0)
    # A mean of three runs whose times spread by 2 %.
    assert seconds.std(0) == pytest.approx(0.02 / 3**0.5, rel=0.5)
    assert quiet.families == ("dense", "altup")


def test_a_better_family_is_as_much_cheaper_as_the_laws_say() -> None:
    found = drawn(pair())
    n, d = best(found, "altup", "flops", 3e14)
    assert 6 * n * d == pytest.approx(3e14)
    seen = multiplier(found, "altup", "dense", "flops", n=n, d=d)
    law = random_surface(4).law
    loss = Law(law.e, 0.85 * law.a, law.alpha, 0.85 * law.b, law.beta).loss(n, d)
    assert seen.interval.holds(true_multiplier(law, loss, 3e14))
    assert seen.interval.holds(seen.ratio)
    assert (seen.verdict, seen.extrapolated) == ("cheaper", False)
    assert seen.ratio == pytest.approx(seen.reference_cost / seen.cost)
    back = multiplier(found, "dense", "altup", "flops", n=n, d=d)
    assert (back.verdict, back.interval.high < 1) == ("dearer", True)


def test_equal_seconds_is_another_question_than_equal_flops() -> None:
    slow = [replace(p, seconds=3 * p.seconds) if p.family == "altup" and p.seconds else p for p in pair()]
    found = drawn(slow)
    n, d = best(found, "altup", "flops", 3e14)
    flops, seconds = (multiplier(found, "altup", "dense", axis, n=n, d=d) for axis in ("flops", "seconds"))
    assert flops.ratio / seconds.ratio == pytest.approx(3, rel=0.05)
    assert (flops.verdict, seconds.verdict) == ("cheaper", "dearer")


def test_no_difference_is_not_decided() -> None:
    found = drawn(pair(better=1.0))
    n, d = best(found, "altup", "flops", 3e14)
    seen = multiplier(found, "altup", "dense", "flops", n=n, d=d)
    assert seen.verdict == "not decided"
    assert seen.ratio == pytest.approx(1, abs=0.05)


def test_beyond_the_references_runs_is_said() -> None:
    found = drawn(pair())
    n, d = best(found, "altup", "flops", 3e18)
    assert multiplier(found, "altup", "dense", "flops", n=n, d=d).extrapolated
    other = Law(random_surface(4).law.e - 0.6, 0.0, 0.3, 1.0, 0.3)
    below = bootstrap(
        fit(pair() + measured(replace(other, a=2.0), np.random.default_rng(0), 0.004, family="x")), draws=50
    )
    seen = multiplier(below, "x", "dense", "flops", n=1e8, d=1e12)
    assert (seen.ratio, seen.verdict, seen.extrapolated) == (np.inf, "cheaper", True)


def test_a_cost_that_was_not_measured_is_told() -> None:
    points = [replace(p, seconds=None) for p in pair()]
    with pytest.raises(UserError, match="run 'altup-1e\\+06-0' of 'altup': seconds is None; a number above 0 fits"):
        multiplier(drawn(points), "altup", "dense", "seconds", n=1e7, d=1e8)


# marin-community/marin issue 9290 (20 September 2026): losses at d512 and d768, and the compute speedups Sc published
# for them with floor 1.2 and exponent 0.0842. The issue does not print each variant's throughput.
MARIN_9290 = {
    512: (3.1559, {3.1470: 1.06, 3.1444: 1.07, 3.1524: 1.02, 3.1485: 1.05, 3.1520: 1.02, 3.1539: 1.01, 3.1639: 0.95}),
    768: (2.8723, {2.8508: 1.17, 2.8628: 1.07, 2.8623: 1.07, 2.8675: 1.04, 2.8723: 1.00, 2.8739: 0.99, 2.8665: 1.04}),
}
# (loss, tokens/s, reference's loss, reference's tokens/s, published at equal compute, published at equal seconds),
# floor 1.6, exponent 0.0941: marin issue 7409 (first two), 5224 (next two), 5806 (last three).
MARIN_SECONDS = [
    (3.544176, 328021.81, 3.566663, 352496.25, 1.1300, 1.0515),
    (3.208981, 225091.48, 3.227240, 248672.40, 1.1274, 1.0205),
    (3.7971, 372477, 3.8104, 405630, 1.066, 0.979),
    (3.4249, 263755, 3.4339, 273532, 1.054, 1.016),
    (3.6400, 312005, 3.6427, 332184, None, 0.95),
    (3.2998, 215972, 3.3040, 233410, None, 0.95),
    (3.0588, 141469, 3.0610, 153848, None, 0.93),
]


@pytest.mark.parametrize("width", MARIN_9290)
def test_published_losses_give_the_published_multipliers(width: int) -> None:
    reference, published = MARIN_9290[width]
    curve = PinnedCurve(1.2, 0.0842)
    alike = 0
    for loss, ratio in published.items():
        # Losses are printed with four digits after the point: what they were before may round the other way.
        ends = [round(curve.multiplier(loss + off, reference - off), 2) for off in (5e-5, -5e-5)]
        assert ends[0] <= ratio <= ends[1]
        alike += round(curve.multiplier(loss, reference), 2) == ratio
    assert alike >= len(published) - 1


@pytest.mark.parametrize(("loss", "tps", "base", "base_tps", "compute", "seconds"), MARIN_SECONDS)
def test_published_throughputs_give_the_published_multipliers(
    loss: float, tps: float, base: float, base_tps: float, compute: float | None, seconds: float
) -> None:
    curve = PinnedCurve(1.6, 0.0941)
    assert round(curve.multiplier(loss, base, tps / base_tps), 2) == round(seconds, 2)
    assert compute is None or round(curve.multiplier(loss, base), 2) == round(compute, 2)


def test_the_interval_of_two_runs_holds_the_truth() -> None:
    curve, generator = PinnedCurve(1.2, 0.0842), np.random.default_rng(0)
    truth = curve.multiplier(3.14, 3.16)
    losses = np.array([3.14, 3.16]) + 0.005 * generator.standard_normal((2000, 2))
    held = [curve.interval(*pair, 0.005).holds(truth) for pair in losses]
    assert np.mean(held) == pytest.approx(0.9, abs=0.02)


def test_a_published_gain_is_not_decided_by_one_seed() -> None:
    """Losses of small models spread by 0.005 nats over seeds or more; then 1.06 from one run each is not decided."""
    curve = PinnedCurve(1.2, 0.0842)
    assert curve.interval(3.1470, 3.1559, 0.005).holds(1.0)
    assert not curve.interval(2.8508, 2.8723, 0.005).holds(1.0)


def test_a_loss_on_the_floor_is_told() -> None:
    with pytest.raises(UserError, match=r"loss is 1.2; a loss above the curve's floor of 1.2 fits"):
        PinnedCurve(1.2, 0.0842).multiplier(1.2, 3.0)
