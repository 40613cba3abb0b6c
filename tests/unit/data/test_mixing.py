"""Mixtures: every prefix has its shares to within one sample, and any number can be asked for alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.config import ConfigError
from altup_moe.config.data_checks import mixture_entries
from altup_moe.data.mixing import mixture_order

WEIGHTS = st.lists(st.fractions(Fraction(1, 20), 50, max_denominator=20), min_size=1, max_size=7)


@given(WEIGHTS)
def test_every_prefix_has_its_shares(weights: list[Fraction]) -> None:
    samples = 300
    order, total = mixture_order(weights, samples), sum(weights)
    had = [0] * len(weights)
    for n in range(samples):
        component, index = order[n]
        assert index == had[component]  # each component's own samples come in order, none twice
        had[component] += 1
        for weight, count in zip(weights, had, strict=True):
            assert abs(count - (n + 1) * weight / total) <= 1 - Fraction(1, max(2, 2 * len(weights) - 2))
    assert order.counts(samples) == had


def test_the_order_repeats_exactly_after_its_period() -> None:
    weights = [Fraction("0.5"), Fraction("0.3"), Fraction("0.2")]
    short, long = mixture_order(weights, 10**6), mixture_order([w * 7 for w in weights], 10**6)
    assert len(short.component) == 10
    assert [short[n] for n in range(95)] == [long[n] for n in range(95)]
    assert short.counts(95) == [sum(short[n][0] == c for n in range(95)) for c in range(3)]
    assert short[10**12][1] == 5 * 10**11


def test_one_component_is_itself() -> None:
    order = mixture_order([Fraction(3)], 10)
    assert [order[n] for n in range(3)] == [(0, 0), (0, 1), (0, 2)]
    assert order.counts(17) == [17]


def test_a_greedy_order_would_be_worse() -> None:
    """What Megatron's blend does (the component that is furthest behind) leaves the bound for some weights."""
    weights = np.array([10, 10, 10, 10, 10, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]) / 62
    had, worst = np.zeros(len(weights)), 0.0
    for n in range(1, 63):
        had[np.argmax(n * weights - had)] += 1
        worst = max(worst, float(np.abs(n * weights - had).max()))
    order = mixture_order([Fraction(int(w * 62 + 0.5)) for w in weights], 62)
    counts = np.cumsum(np.eye(len(weights))[order.component], axis=0)
    ours = np.abs(counts - np.arange(1, 63)[:, None] * weights).max()
    print(f"furthest from its share: greedy {worst:.3f}, ours {ours:.3f}")
    assert ours < 1


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (("a=0",), "above 0"),
        (("a=-1",), "above 0"),
        (("a=1", "a=2"), "once"),
        (("a=1", "b"), "all of them or for none"),
        (("=2",), "NAME"),
    ],
)
def test_wrong_entries_are_named(entries: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        mixture_entries(entries)
    assert error.value.key == "data.mixture"


def test_entries() -> None:
    assert mixture_entries(("cb=2", "data/x=y=0.1")) == {"cb": Fraction(2), "data/x=y": Fraction(1, 10)}
    assert mixture_entries(("cb", "data/x=y")) == {"cb": None, "data/x=y": None}
