"""How long a run still takes, from the time of its latest steps."""

from __future__ import annotations

from collections import deque
from datetime import timedelta

WINDOW = 200
"""Steps whose mean time is taken: enough to hold validations and saves, few enough to follow a machine that slows."""


class TimeLeft:
    """Estimates the time to the last step.

    The mean runs from the end of one step to the end of another, so that validations, samples and waits for a save
    count, and the first step, which allocates, does not.
    """

    def __init__(self, last_step: int) -> None:
        self.last_step = last_step
        self._ends: deque[tuple[int, float]] = deque(maxlen=WINDOW + 1)

    def step_ended(self, step: int, now: float) -> float | None:
        """Seconds from `now` to the end of the last step; None after the first step and after the last.

        Args:
            now: seconds of a monotonic clock.
        """
        self._ends.append((step, now))
        first, began = self._ends[0]
        if step == first or step >= self.last_step:
            return None
        return (now - began) / (step - first) * (self.last_step - step)


def spelled_left(seconds: float) -> str:
    """``0:03:12 left``; from a day on ``1 day, 2:03:04 left``."""
    return f"{timedelta(seconds=round(seconds))} left"
