"""The statistics of a study's report, on cases whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.study.records import StudyRow
from altup_moe.study.report.models import Model, last_lines, split
from altup_moe.study.report.statistics import Bootstrap, cost_at, loss_difference, nearest_size, pareto_front, speed
from altup_moe.study.report.summary import summarise
from tests.studies import MACHINE, failed, row

FEW = Bootstrap(400, 0)


def model(name: str, *points: tuple[float, float], family: str = "dense", parameters: int = 10) -> Model:
    """A seed for each (loss, ms)."""
    rows = [row(name, seed, *point, family=family, parameters=parameters) for seed, point in enumerate(points)]
    return Model(name, family, tuple(rows))


SMALL, LARGE = model("small", (4.0, 10.0), (4.0, 10.0)), model("large", (2.0, 1000.0), (2.0, 1000.0))


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
    found = speed(model("wide", (2.9, 40.0), (3.1, 60.0), family="altup"), [SMALL, LARGE], "train_step", FEW)
    assert found is not None
    assert (found.reached, found.ratio) == ("yes", pytest.approx(2.0))
    # Two seeds: a quarter of the draws is one of them twice, so the ends are the seeds' own ratios. A row's loss and
    # time are drawn together: the better loss (125.9 ms on the curve) is the faster row's.
    assert found.interval is not None
    assert found.interval.low == pytest.approx(10**1.9 / 60)
    assert found.interval.high == pytest.approx(10**2.1 / 40)
    assert (found.interval.better, found.interval.worse, found.no_difference) == (0, 0, False)


def test_a_size_that_another_beats_is_not_on_the_curve() -> None:
    slow = model("slow", (3.5, 5000.0), (3.5, 5000.0))
    wide = model("wide", (3.0, 50.0), (3.0, 50.0), family="altup")
    assert speed(wide, [slow, LARGE, SMALL], "train_step", FEW) == speed(wide, [SMALL, LARGE], "train_step", FEW)


def test_no_difference_where_the_interval_holds_one() -> None:
    found = speed(model("wide", (3.0, 80.0), (3.0, 120.0), family="altup"), [SMALL, LARGE], "train_step", FEW)
    assert found is not None
    assert found.ratio == pytest.approx(1.0)
    assert found.no_difference


@pytest.mark.parametrize(
    ("losses", "reached", "least"), [((1.5, 1.5), "better", 1000 / 50), ((4.5, 4.5), "worse", None)]
)
def test_off_the_curve_there_is_no_figure(losses: tuple[float, float], reached: str, least: float | None) -> None:
    wide = model("wide", *((loss, 50.0) for loss in losses), family="altup")
    found = speed(wide, [SMALL, LARGE], "train_step", FEW)
    assert found is not None
    assert (found.reached, found.ratio, found.at_least) == (reached, None, least)
    assert found.interval is not None
    assert (found.interval.better, found.interval.worse) == ((400, 0) if reached == "better" else (0, 400))


def test_draws_off_the_curve_are_counted_and_open_the_interval() -> None:
    wide = model("wide", (1.75, 50.0), (2.25, 50.0), family="altup")  # their mean is the curve's end
    found = speed(wide, [SMALL, LARGE], "train_step", FEW)
    assert found is not None
    assert found.interval is not None
    assert found.ratio == pytest.approx(20.0)
    assert 60 < found.interval.better < 140
    assert found.interval.worse == 0
    assert (found.interval.low, found.interval.high) == (pytest.approx(10 ** (1 + 1.75) / 50), math.inf)


def test_the_reference_is_drawn_too() -> None:
    loose = model("large", (2.0, 500.0), (2.0, 2000.0))
    wide = model("wide", (2.0, 1000.0), (2.0, 1000.0), family="altup")
    found = speed(wide, [SMALL, loose], "train_step", FEW)
    assert found is not None
    assert found.interval is not None
    assert (found.interval.low, found.ratio, found.interval.high) == pytest.approx((0.5, 1.25, 2.0))


def test_one_seed_has_a_ratio_and_no_interval() -> None:
    for wide, large in (((3.0, 50.0),), LARGE), (((3.0, 50.0), (3.0, 50.0)), model("large", (2.0, 1000.0))):
        found = speed(model("wide", *wide, family="altup"), [SMALL, large], "train_step", FEW)
        assert found is not None
        assert (found.ratio, found.interval) == (pytest.approx(2.0), None)


def test_a_latency_that_was_not_measured_gives_nothing() -> None:
    wide = model("wide", (3.0, 50.0), family="altup")
    assert speed(wide, [SMALL, LARGE], "decode", FEW) is None
    assert speed(wide, [SMALL], "train_step", FEW) is None
    unmeasured = Model("wide", "altup", (row("wide", 0, 3.0, None, family="altup"),))
    assert speed(unmeasured, [SMALL, LARGE], "train_step", FEW) is None


def test_the_draws_depend_on_the_seed_and_on_no_other_model() -> None:
    wide = model("wide", (2.9, 40.0), (3.1, 60.0), (3.0, 55.0), family="altup")
    loose = model("large", (2.0, 900.0), (2.1, 1000.0), (1.9, 1100.0))
    one = speed(wide, [SMALL, loose], "train_step", FEW)
    assert one == speed(wide, [loose, SMALL], "train_step", FEW)
    assert one != speed(wide, [SMALL, loose], "train_step", Bootstrap(400, 1))


def test_the_difference_of_losses_and_its_nearest_counterpart() -> None:
    small, large = model("small", (4.0, 1.0), (4.2, 1.0), parameters=10), model("large", (2.0, 9.0), parameters=100)
    wide = model("wide", (3.9, 1.0), (4.1, 1.0), family="altup", parameters=30)  # 3 times small's, a 3.3th of large's
    assert nearest_size(wide, [large, small]) is small
    found = loss_difference(wide, small, FEW)
    assert (found.other, found.loss) == ("small", pytest.approx(-0.1))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((-0.3, 0.1))
    assert found.no_difference
    assert loss_difference(wide, large, FEW).interval is None


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
    return "\n".join(summarise(rows, "dense", FEW).notes)


def test_what_cannot_be_compared_is_noted() -> None:
    pair = [row("a", 0, 3.0), row("a", 1, 3.1), row("b", 0, 2.9), row("b", 1, 2.8)]
    assert _notes(pair) == ""
    assert "same hardware" in _notes([*pair, row("c", 0, hardware=replace(MACHINE, ranks=2))])
    assert "as many tokens\n" in _notes([*pair, replace(row("c", 0), tokens=8192, steps=1)])
    assert "tokens in a step" in _notes([*pair, replace(row("c", 0), steps=1)])
    assert "one seed, so no spread and no interval: c" in _notes([*pair, row("c", 0)])
    other = row("c", 0)
    assert other.quality is not None
    other = replace(other, quality=replace(other.quality, valid_bits_per_byte=1.0))
    assert "compare bits per byte" in _notes([*pair, other])
    assert "1 earlier lines" in _notes([failed("b", 1), *pair])
    assert "needs two models" in _notes([row("wide", 0, family="altup"), row("a", 0)])
