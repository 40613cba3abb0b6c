"""The time that a run still takes."""

from __future__ import annotations

from pathlib import Path

from altup_moe.train.loggers import Console, open_loggers
from altup_moe.train.time_left import WINDOW, TimeLeft, spelled_left
from tests.unit.train.runs import tiny


def test_it_follows_the_latest_steps_of_a_resumed_run() -> None:
    left = TimeLeft(1000)
    assert left.step_ended(101, 7.0) is None
    assert left.step_ended(102, 9.0) == 2.0 * 898
    # From here on a step takes 5 s: once the window holds no others, that is all that counts.
    for step in range(103, 103 + WINDOW):
        seconds = left.step_ended(step, 9.0 + 5.0 * (step - 102))
    assert seconds == 5.0 * (1000 - (102 + WINDOW))
    assert left.step_ended(1000, 9999.0) is None


def test_it_ends_where_the_run_stops(tmp_path: Path) -> None:
    config = tiny(train={"steps": 60, "stop_after": 20}, log={"run_dir": str(tmp_path), "tensorboard": False})
    loggers = open_loggers(config, 1)
    (console,) = (logger for logger in loggers if isinstance(logger, Console))
    assert console._time_left.last_step == 20
    for logger in loggers:
        logger.close()


def test_spelling() -> None:
    assert [spelled_left(seconds) for seconds in (0.4, 192.3, 93784.0)] == [
        "0:00:00 left",
        "0:03:12 left",
        "1 day, 2:03:04 left",
    ]
