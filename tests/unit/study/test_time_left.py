"""The time that is left of a study, and how it is spelled."""

from __future__ import annotations

import pytest

from altup_moe.study.time_left import Work, seconds_left, spelled_time


def test_the_time_left_follows_from_the_rate_so_far() -> None:
    # 100 operations took 10 core-seconds: 10 a second.
    done = Work(100, 100, 10)
    assert seconds_left([Work(0, 100, 0)], [], 2) is None
    assert seconds_left([done], [], 2) == 0
    # 300 on two cores; then 50 measured.
    assert seconds_left([done, Work(0, 150, 0), Work(0, 150, 0)], [Work(0, 50, 0)], 2) == pytest.approx(15 + 5)
    # One row fills one core, however many there are.
    assert seconds_left([done, Work(0, 150, 0)], [], 2) == pytest.approx(15)
    # And the longest row is not cut in two.
    assert seconds_left([done, Work(0, 190, 0), Work(0, 10, 0)], [], 2) == pytest.approx(19)
    # Two ranks fill two cores.
    assert seconds_left([done, Work(0, 300, 0, 2)], [Work(0, 40, 0, 2)], 2) == pytest.approx(15 + 2)


def test_time_is_spelled_in_the_unit_that_fits() -> None:
    assert spelled_time(None) == "time left not known yet"
    assert [spelled_time(s) for s in (0.2, 80, 600, 7200)] == [
        "about 1 s left",
        "about 80 s left",
        "about 10 min left",
        "about 2.0 h left",
    ]
