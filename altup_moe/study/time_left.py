"""Estimate how long the rest of a study will take. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """Work of a row: operations done and in total, core-seconds spent so far, cores that it fills."""

    done: float
    total: float
    core_seconds: float
    cores: int = 1

    @property
    def left(self) -> float:
        """Operations still to do."""
        return max(0.0, self.total - self.done)


def seconds_left(training: Sequence[Work], measuring: Sequence[Work], lanes: int) -> float | None:
    """Seconds until the study ends; None while nothing has been measured.

    Operations left over the rate that rows have had so far. Training fills `lanes` cores (less, where the last rows
    are fewer), measuring takes one row after the other.
    """
    done, spent = sum(work.done for work in training), sum(work.core_seconds for work in training)
    if done <= 0 or spent <= 0:
        return None
    rate = done / spent
    unfinished = [work for work in training if work.left]
    wide = max(1, min(lanes, sum(work.cores for work in unfinished)))
    # A row cannot use more cores than its own.
    longest = max((work.left / work.cores for work in unfinished), default=0.0)
    train = max(sum(work.left for work in unfinished) / wide, longest)
    measure = sum(work.left / work.cores for work in measuring)
    return (train + measure) / rate


def spelled_time(seconds: float | None) -> str:
    """`about 12 min left`, or `time left not known yet`."""
    if seconds is None:
        return "time left not known yet"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
