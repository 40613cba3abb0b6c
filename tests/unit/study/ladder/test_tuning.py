"""The best value of a tuned key lies where the loss is lowest; where the grid ends too early, it is longer."""

from __future__ import annotations

import math

import pytest

from altup_moe.study.ladder.tuning import MOST_EXTENSIONS, Tuned, best_value, next_value


def bowl(lowest: float, *values: float) -> dict[float, float]:
    """Losses that are quadratic in the logarithm of the value."""
    return {value: 3.0 + 0.2 * math.log(value / lowest) ** 2 for value in values}


@pytest.mark.parametrize("lowest", [1.1e-3, 2e-3, 2.7e-3, 3.9e-3])
def test_a_parabola_is_found_exactly(lowest: float) -> None:
    found = best_value(bowl(lowest, 1e-3, 2e-3, 4e-3))
    # At 1.1e-3 and 3.9e-3 the best try is the first or the last one.
    edge = lowest in (1.1e-3, 3.9e-3)
    assert found is not None
    assert found.at_edge == edge
    assert found.value == pytest.approx({1.1e-3: 1e-3, 3.9e-3: 4e-3}.get(lowest, lowest), rel=5e-3)


def test_a_grid_that_ends_too_early_goes_on() -> None:
    tried = bowl(9e-3, 1e-3, 2e-3, 4e-3)
    assert next_value(tried, 3) == 8e-3
    tried |= bowl(9e-3, 8e-3)
    assert next_value(tried, 3) == 1.6e-2
    tried |= bowl(9e-3, 1.6e-2)
    assert next_value(tried, 3) is None
    found = best_value(tried)
    assert found is not None
    assert found == Tuned(pytest.approx(9e-3, rel=5e-3), False)
    assert next_value(bowl(1e-4, 1e-3, 2e-3, 4e-3), 3) == 5e-4


def test_it_does_not_go_on_for_ever() -> None:
    tried = bowl(1.0, 1e-3, 2e-3, 4e-3)
    for _ in range(MOST_EXTENSIONS):
        value = next_value(tried, 3)
        assert value is not None
        tried |= bowl(1.0, value)
    assert next_value(tried, 3) is None
    found = best_value(tried)
    assert found == Tuned(max(tried), True)


def test_tries_that_failed_bound_the_best_one() -> None:
    tried = {**bowl(4e-3, 1e-3, 2e-3, 4e-3), 8e-3: math.inf}
    assert next_value(tried, 4) is None
    assert best_value(tried) == Tuned(4e-3, False)
    assert best_value({1e-3: math.inf, 2e-3: math.inf}) is None
    assert next_value({1e-3: math.inf, 2e-3: math.inf}, 2) is None


def test_equal_losses_are_no_parabola() -> None:
    assert best_value({1e-3: 3.0, 2e-3: 3.0, 4e-3: 3.0}) == Tuned(1e-3, True)
    assert best_value({1e-3: 3.0, 2e-3: 2.9, 4e-3: 3.0}) == Tuned(2e-3, False)
