"""Which models of a study are compared in pairs, what a comparison says, and what of the Pareto front is told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import (
    adjusted_p,
    latency_ratio,
    loss_difference,
    nearest_size,
    own_loss,
    share_draws,
)
from altup_moe.study.report.front import told_apart, unbeaten_indices
from altup_moe.study.report.models import Model
from altup_moe.study.report.summary import summarise
from tests.studies import row

SEEDS = (7, 3, 5)
OURS, THEIRS = (6.050, 6.130, 5.990), (6.061, 6.143, 6.002)
"""Per seed -0.011, -0.013 and -0.012: a seed moves both by 0.07."""


def model(name: str, losses: Sequence[float], seeds: Sequence[int] = SEEDS, ms: float = 100.0, **kw: Any) -> Model:
    """A model with these seeds, in any order."""
    rows = [row(name, seed, loss, ms + seed, **kw) for seed, loss in zip(seeds, losses, strict=True)]
    return Model(name, rows[0].family, tuple(rows))


def changed(one: Model, **values: Any) -> Model:
    """The same with other values in every row."""
    return replace(one, rows=tuple(replace(each, **values) for each in one.rows))


WIDE, DENSE = model("wide", OURS, family="altup"), model("dense", THEIRS)


def test_models_of_one_draw_are_compared_seed_by_seed_whatever_their_order() -> None:
    found = loss_difference(WIDE, replace(DENSE, rows=DENSE.rows[::-1]))
    expected = stats.ttest_rel(OURS, THEIRS)
    ends = expected.confidence_interval(0.95)
    assert found.paired
    assert found.value == pytest.approx(-0.012)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval.high - found.interval.low < 0.006  # Welch's is 0.3


@pytest.mark.parametrize(
    "other",
    [
        changed(DENSE, overrides={"model.hidden_size": 96}),
        changed(DENSE, overrides={"train.global_batch_size": 4}),
        changed(DENSE, overrides={"data.corpus": "other"}),
        changed(DENSE, tokens=8192),
        changed(DENSE, steps=1),
        replace(DENSE, rows=tuple(replace(each, seed=each.seed + 10) for each in DENSE.rows)),
        replace(DENSE, rows=(replace(DENSE.rows[0], tokens=1), *DENSE.rows[1:])),
    ],
    ids=["weights", "batch", "corpus", "tokens", "steps", "seeds", "one row"],
)
def test_other_draws_are_compared_by_welchs_test(other: Model) -> None:
    found = loss_difference(WIDE, other)
    ends = stats.ttest_ind(OURS, THEIRS, equal_var=False).confidence_interval(0.95)
    assert not found.paired
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((ends.low, ends.high))


def test_what_leaves_weights_and_data_alone_keeps_the_pairs() -> None:
    overrides = {"altup.width": 4, "moe.num_experts": 8, "optim.learning_rate": 0.1}
    assert share_draws(WIDE, changed(DENSE, overrides=overrides))
    sizes = {"model.hidden_size": 96, "altup.width": 1}
    assert share_draws(changed(WIDE, overrides={"model.hidden_size": 96}), changed(DENSE, overrides=sizes))


def test_pairs_are_of_the_seeds_that_both_have() -> None:
    more = model("dense", (*THEIRS, 9.0), (*SEEDS, 11))
    found = loss_difference(WIDE, more)
    assert (found.value, found.paired) == (pytest.approx(-0.012), True)
    assert not loss_difference(WIDE, model("dense", (6.061, 9.0), (7, 11))).paired


def test_a_ratio_of_latencies_is_compared_on_its_logarithm() -> None:
    slow = model("slow", OURS, ms=150.0, family="altup", width=96)
    found = latency_ratio(slow, DENSE, "train_step")
    assert found is not None
    ours, theirs = (np.log([at + seed for seed in SEEDS]) for at in (150.0, 100.0))
    ends = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(math.exp(ours.mean() - theirs.mean()))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((math.exp(ends.low), math.exp(ends.high)))
    assert latency_ratio(slow, DENSE, "decode") is None


def test_one_seed_has_a_ratio_and_no_verdict() -> None:
    one = model("slow", OURS[:1], (7,), ms=200.0, family="altup")
    found = latency_ratio(one, DENSE, "train_step")
    assert found is not None
    assert (found.interval, found.p, found.seeds_needed, found.no_difference) == (None, None, None, False)
    assert found.value == pytest.approx(207.0 / math.exp(np.log([107.0, 103.0, 105.0]).mean()))
    assert loss_difference(one, DENSE).interval is None
    assert own_loss(one, "loss") is None


def test_a_models_own_loss_has_a_t_interval() -> None:
    found = own_loss(WIDE, "loss")
    assert found is not None
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, np.mean(OURS), stats.sem(OURS)))


def test_the_counterpart_is_the_nearest_size() -> None:
    small, large = model("small", THEIRS, parameters=10), model("large", THEIRS, parameters=100)
    wide = model("wide", OURS, family="altup", parameters=30)  # 3 times small's, a 3.3th of large's
    assert nearest_size(wide, [large, small]) is small
    # A size of which there are runs of several lengths.
    longer = changed(small, tokens=8192)
    assert nearest_size(wide, [longer, large, small]) is small
    assert nearest_size(changed(wide, tokens=8192), [small, longer]) is longer
    assert nearest_size(changed(wide, tokens=5), [small, longer]) is small


def test_p_values_are_adjusted_among_those_that_were_tested() -> None:
    assert adjusted_p([0.02, None, 0.03]) == [pytest.approx(0.04), None, pytest.approx(0.04)]


def test_the_summary_adjusts_each_column_among_all_its_models() -> None:
    def rows(name: str, gap: float, noise: float) -> list[StudyRow]:
        return [row(name, s, 3.0 + gap + noise * (s - 2), 110.0, family="altup") for s in (1, 2, 3)]

    dense = [row("dense", seed, 3.0) for seed in (1, 2, 3)]
    found = summarise([*dense, *rows("a", -0.10, 0.02), *rows("b", -0.2, 0.001), *rows("c", 0.01, 0.1)], "dense")
    a, b, c = (found.differences[name] for name in "abc")
    assert a.p is not None
    assert a.p < 0.05  # 0.013 alone, 0.026 among the two that are left after b
    assert a.adjusted == pytest.approx(2 * a.p)
    assert b.p is not None
    assert b.adjusted == pytest.approx(3 * b.p)
    assert (a.no_difference, b.no_difference, c.no_difference) == (False, False, True)
    more = [each for k in range(4) for each in rows(f"d{k}", 0.01, 0.1)]
    among = summarise([*dense, *rows("a", -0.10, 0.02), *more], "dense").differences["a"]
    assert among.p == a.p
    assert among.no_difference  # five times 0.013
    assert among.interval is not None
    assert not among.interval.holds(0.0)


# -- the Pareto front --------------------------------------------------------------------------------------------------


def test_a_ring_needs_every_other_to_be_shown_worse_or_dearer() -> None:
    cheap = model("cheap", (4.00, 4.01, 4.02), ms=10.0, parameters=10)
    good = model("good", (3.00, 3.01, 3.02), ms=100.0, parameters=100)
    beaten = model("beaten", (4.50, 4.51, 4.52), ms=1000.0, parameters=1000)
    models = [cheap, good, beaten]
    rings = told_apart(models)
    assert rings["loss"]["train_step"] == rings["bits"]["parameters"] == [0, 1]
    # As fast as `good`, and better by less than its seeds' spread: which of the two is on the front, nobody knows.
    twin = model("twin", (3.02, 2.99, 3.00), ms=100.0, parameters=101)
    rings = told_apart([*models, twin])
    assert rings["loss"]["train_step"] == [0]
    assert unbeaten_indices([*models, twin], "train_step", "loss") == [0, 3]
    # Counts of parameters are exact: whether `twin` has more is known, whether it is better is not.
    assert rings["loss"]["parameters"] == [0, 1]
    assert rings["loss"]["decode"] == []


def test_rings_are_told_apart_among_all_of_a_front() -> None:
    """Each step down the front is found alone (p 0.03), and of two such steps neither is."""
    steps = (-0.131, -0.1, -0.069)
    models = [model(f"m{k}", [4.0 + k * step for step in steps], (1, 2, 3), parameters=10 * (k + 1)) for k in range(3)]
    assert told_apart(models[:2])["loss"]["parameters"] == [0, 1]
    assert told_apart(models)["loss"]["parameters"] == [0]


def test_one_seed_rings_nothing_that_must_be_measured() -> None:
    cheap, good = model("cheap", (4.0,), (1,), ms=10.0, parameters=10), model("good", (3.0,), (1,), parameters=100)
    rings = told_apart([cheap, good])
    assert rings["loss"]["train_step"] == []
    assert rings["loss"]["parameters"] == [0]  # nothing has fewer


def test_rings_are_seldom_around_models_that_do_not_differ() -> None:
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(40):
        models = [model(f"m{i}", draw.normal(3.0, 0.1, 4), (1, 2, 3, 4), parameters=10) for i in range(4)]
        wrong += bool(told_apart(models)["loss"]["parameters"])
    assert wrong <= 5  # 4 % of the studies would be 1.6
