"""Time calls on a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Call = Callable[[], Any]
WARM_UPS = 3
QUEUE_CYCLES = 2_000_000
"""Clock cycles that a GPU waits first, about a millisecond: what is launched meanwhile lies in its queue, so that the
time is the GPU's and not that of launching."""


def call_seconds(call: Call, device: torch.device) -> float:
    """Seconds of one call: between two events on a GPU, by the wall clock on a CPU. Freeing its result is not timed."""
    if device.type != "cuda":
        began = time.perf_counter()
        result = call()
        taken = time.perf_counter() - began
        del result
        return taken
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUE_CYCLES)
    begin.record()
    result = call()
    end.record()
    end.synchronize()
    del result
    return begin.elapsed_time(end) / 1e3


def interleaved_medians(calls: Mapping[str, Call], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call. They take turns, so that a change of the machine's speed meets all of them."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UPS + repeats):
        for name, call in calls.items():
            seconds = call_seconds(call, device)
            if turn >= WARM_UPS:
                taken[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
