"""The statistics of a study's report, on cases whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import latency_ratio
from altup_moe.study.report.front import pareto_front
from altup_moe.study.report.models import Interval, Model, last_lines, split
from altup_moe.study.report.statistics import Speed, cost_at, speed
from altup_moe.study.report.summary import summarise
from tests.studies import MACHINE, failed, row


def model(name: str, *points: tuple[float, float], family: str = "dense", width: int | None = None) -> Model:
    """A seed for each (loss, ms)."""
    rows = [row(name, seed, *point, family=family, width=width) for seed, point in enumerate(points)]
    return Model(name, family, tuple(rows))


def near(loss: float, ms: float, spread: float = 0.001) -> list[tuple[float, float]]:
    """Three seeds about a loss, the better the faster, each by as many percent as thousandths of a nat."""
    return [(loss + k * spread, ms * math.exp(0.01 * k)) for k in (-1, 0, 1)]


SMALL, LARGE = model("small", *near(4.0, 10.0), width=64), model("large", *near(2.0, 1000.0), width=512)


def found_speed(wide: Model, reference: list[Model] | None = None) -> Speed:
    """The speed of a training step."""
    found = speed(wide, [SMALL, LARGE] if reference is None else reference, "train_step")
    assert found is not None
    return found


def wide(*points: tuple[float, float]) -> Model:
    """A model that is not of the reference family."""
    return model("wide", *points, family="altup")


def test_the_front_has_what_no_other_point_beats() -> None:
    points = [(1.0, 5.0), (2.0, 3.0), (2.5, 3.0), (3.0, 4.0), (4.0, 1.0), None, (1.0, 6.0)]
    assert pareto_front(points) == [0, 1, 4]


def test_equal_points_are_all_on_the_front() -> None:
    assert sorted(pareto_front([(2.0, 3.0), (2.0, 3.0), (1.0, 4.0)])) == [0, 1, 2]
    assert pareto_front([None, None]) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_front_is_what_its_definition_says(points: list[tuple[int, int]]) -> None:
    def beaten(p: tuple[int, int]) -> bool:
        return any(q[0] <= p[0] and q[1] <= p[1] and q != p for q in points)

    assert sorted(pareto_front(points)) == [i for i, p in enumerate(points) if not beaten(p)]


def test_between_two_sizes_the_logarithm_of_the_latency_is_linear() -> None:
    curve = [(10.0, 4.0), (1000.0, 2.0)]
    assert cost_at(3.0, curve) == pytest.approx(100.0)
    assert cost_at(3.5, curve) == pytest.approx(10**1.5)
    assert (cost_at(4.0, curve), cost_at(2.0, curve)) == pytest.approx((10.0, 1000.0))
    assert (cost_at(4.1, curve), cost_at(1.9, curve)) == (-math.inf, math.inf)


def test_speed_at_equal_quality_is_the_curve_over_the_models_own_time() -> None:
    found = found_speed(wide(*near(3.0, 50.0)))
    assert found.ratio == pytest.approx(2.0)
    # To first order: the model's loss moves the curve by ln(100) / 2 a nat, its latency by itself, and both are higher
    # for the same seed, so that they add up. Half of each size's row counts, likewise.
    slope = math.log(100) / 2
    own, size = slope * 0.001 + 0.01, 0.5 * (slope * 0.001 + 0.01)
    squares = [s**2 / 3 for s in (own, size, size)]
    freedom = sum(squares) ** 2 / sum(s**2 / 2 for s in squares)
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(squares))
    assert found.interval is not None
    assert found.interval.low == pytest.approx(2.0 * math.exp(-reach))
    assert found.interval.high == pytest.approx(2.0 * math.exp(reach))
    assert found.p is not None
    assert found.p < 1e-3


def test_loss_and_time_of_a_row_stay_together() -> None:
    """Where the better seed is the slower one, the two make up for each other."""
    slope = math.log(100) / 2
    points = [(3.0 + k * 0.01, 50.0 * math.exp(-slope * k * 0.01)) for k in (-1, 0, 1)]
    apart = [(loss, ms) for (loss, _), (_, ms) in zip(points, points[::-1], strict=True)]
    narrow, broad = (found_speed(wide(*each)).interval for each in (points, apart))
    assert narrow is not None
    assert broad is not None
    assert math.log(broad.high / broad.low) > 1.5 * math.log(narrow.high / narrow.low)


def test_seeds_that_are_one_draw_for_model_and_curve_are_added_seed_by_seed() -> None:
    """What a seed does to both the model and a size of the curve, in opposite directions of the ratio, cancels."""
    shift = (-0.05, 0.0, 0.05)
    dense = model("small", *((4.0 + 2 * k, 10.0) for k in shift))
    own = wide(*((3.0 + k, 50.0) for k in shift))  # half of the small size's term: 0.5 * 2 k, less k of its own
    found = found_speed(own, [dense, LARGE]).interval
    other = wide(*((3.0 - k, 50.0) for k in shift))
    assert found is not None
    assert math.log(found.high / found.low) < 0.1
    broad = found_speed(other, [dense, LARGE]).interval
    assert broad is not None
    assert math.log(broad.high / broad.low) > 0.5


def test_a_size_that_another_beats_is_not_on_the_curve() -> None:
    slow = model("slow", *near(3.5, 5000.0))
    assert found_speed(wide(*near(3.0, 50.0)), [slow, LARGE, SMALL]) == found_speed(wide(*near(3.0, 50.0)))


def test_a_speed_near_one_is_not_told_from_it() -> None:
    found = found_speed(wide((3.0, 80.0), (3.0, 100.0), (3.0, 125.0)))
    assert found.ratio == pytest.approx(1.0)
    assert found.interval is not None
    assert found.interval.holds(1.0)
    assert found.p == pytest.approx(1.0)


def test_off_the_curve_there_is_a_bound() -> None:
    found = found_speed(wide(*near(1.5, 50.0)))
    assert (found.reached, found.ratio, found.at_least) == ("better", None, pytest.approx(20.0))
    assert found.interval is not None
    assert found.interval.high == math.inf
    assert 19.0 < found.interval.low < 20.0
    assert found.p is not None
    assert found.p < 0.05
    found = found_speed(wide(*near(4.5, 50.0)))
    assert (found.reached, found.ratio, found.at_least) == ("worse", None, None)
    assert found.interval is not None
    assert found.interval.low == -math.inf
    assert 0.2 < found.interval.high < 0.21


def test_a_bound_that_leaves_out_nothing_tells_nothing() -> None:
    """Better than the whole curve and slower than its best: neither faster nor slower."""
    found = found_speed(wide(*near(1.5, 2000.0)))
    assert (found.reached, found.p) == ("better", 1.0)


def test_an_end_is_open_where_the_loss_may_lie_off_the_curve() -> None:
    upper = found_speed(wide((2.0, 50.0), (2.1, 50.0), (2.2, 50.0)))
    assert upper.reached == "yes"
    assert upper.interval is not None
    assert upper.interval.high == math.inf
    assert 1 < upper.interval.low < 16
    lower = found_speed(wide((3.8, 50.0), (3.9, 50.0), (4.0, 50.0)))
    assert lower.interval is not None
    assert lower.interval.low == -math.inf
    assert lower.interval.high < 1


def test_a_loss_that_may_lie_beyond_the_curve_claims_no_more_than_its_end() -> None:
    own = wide((1.995, 40.0), (1.999, 50.0), (1.985, 62.5))
    found, end = found_speed(own), latency_ratio(LARGE, own, "train_step")
    assert found.reached == "better"
    assert found.interval is not None
    assert end is not None
    assert end.interval is not None
    assert (found.interval.low, found.interval.high) == (pytest.approx(end.interval.low), math.inf)


def test_sizes_that_are_not_told_apart_are_no_curve() -> None:
    loose = model("large", (1.5, 1000.0), (3.9, 1000.0), (3.9, 1000.0), width=512)
    found = found_speed(wide(*near(3.5, 50.0)), [SMALL, loose])
    assert found.interval == Interval(-math.inf, math.inf)
    assert found.p == 1.0


def test_one_seed_has_a_ratio_and_no_interval() -> None:
    for own, large in (wide((3.0, 50.0)), LARGE), (wide(*near(3.0, 50.0)), model("large", (2.0, 1000.0))):
        found = found_speed(own, [SMALL, large])
        assert (found.ratio, found.interval, found.p) == (pytest.approx(2.0), None, None)


def test_a_latency_that_was_not_measured_gives_nothing() -> None:
    assert speed(wide((3.0, 50.0)), [SMALL, LARGE], "decode") is None
    assert speed(wide((3.0, 50.0)), [SMALL], "train_step") is None
    unmeasured = Model("wide", "altup", (row("wide", 0, 3.0, None, family="altup"),))
    assert speed(unmeasured, [SMALL, LARGE], "train_step") is None


def test_rows_become_models_and_failures() -> None:
    again = [failed("wide", 1, "altup"), row("wide", 1, 3.1, family="altup")]
    rows = [
        row("wide", 2, 3.2, family="altup"),
        *again,
        row("dense", 0, 3.0),
        row("bad", 0, math.nan),
        failed("moe", 0),
    ]
    models, lost = split(last_lines(rows))
    assert [(m.name, m.family, [r.seed for r in m.rows]) for m in models] == [
        ("wide", "altup", [1, 2]),
        ("dense", "dense", [0]),
    ]
    assert [(r.name, r.reason) for r in lost] == [("bad", "it has no finite held-out loss"), ("moe", "it did not fit")]
    loss = models[0].quality("loss")
    assert (loss.mean, loss.least, loss.most, loss.count) == (pytest.approx(3.15), 3.1, 3.2, 2)
    assert loss.std == pytest.approx(0.1 / math.sqrt(2))
    assert models[1].quality("loss").std is None


def _notes(rows: list[StudyRow]) -> str:
    return "\n".join(summarise(rows, "dense").notes)


def test_what_cannot_be_compared_is_noted() -> None:
    pair = [row("a", 0, 3.0), row("a", 1, 3.1), row("b", 0, 2.9), row("b", 1, 2.8)]
    assert _notes([*pair, row("a", 2, 3.0), row("b", 2, 2.9)]) == ""
    assert "same hardware" in _notes([*pair, row("c", 0, hardware=replace(MACHINE, ranks=2))])
    assert "as many tokens\n" in _notes([*pair, replace(row("c", 0), tokens=8192, steps=1)])
    assert "tokens in a step" in _notes([*pair, replace(row("c", 0), steps=1)])
    assert "one seed, so no spread, no interval, no verdict and no ring of the Pareto front: c" in _notes(
        [*pair, row("c", 0)]
    )
    other = row("c", 0)
    assert other.quality is not None
    other = replace(other, quality=replace(other.quality, valid_bits_per_byte=1.0))
    assert "compare bits per byte" in _notes([*pair, other])
    assert "1 earlier lines" in _notes([failed("b", 1), *pair])
    assert "needs two models" in _notes([row("wide", 0, family="altup"), row("a", 0)])
