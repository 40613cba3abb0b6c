"""Clocks for recordings: the host's clock, or events in a CUDA stream that are read at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.distributed import Work

Mark = Any
"""A moment in the form of its clock: ns on the host, an event on CUDA."""


class Clock(Protocol):
    """Marks moments while recording, and converts them to ns of the host's monotonic clock afterwards."""

    def mark(self) -> Mark:
        """Now."""

    def finish(self) -> None:
        """Wait until every mark can be read."""

    def to_ns(self, mark: Mark) -> int:
        """A mark as ns of the host's monotonic clock."""


class HostClock:
    """For CPU and gloo, where a call returns when its work is done."""

    def mark(self) -> Mark:
        """Now, ns. All processes of one host share this clock (CLOCK_MONOTONIC on Linux)."""
        return time.monotonic_ns()

    def finish(self) -> None:
        """Nothing to wait for."""

    def to_ns(self, mark: Mark) -> int:
        """The mark itself."""
        return mark


class CudaClock:
    """For CUDA and NCCL, where a call returns at once: a mark is an event in the current stream. Not yet run on a GPU.

    Two marks of a `wait` span enclose the moment at which the compute stream waits for the exchange.
    """

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._base_ns, self._base = time.monotonic_ns(), self.mark()

    def mark(self) -> Mark:
        """An event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        """Wait for the device, because an event can be read only after it has happened."""
        torch.cuda.synchronize()

    def to_ns(self, mark: Mark) -> int:
        """Device time since the first mark (resolution about 0.5 us, CUDA runtime's cudaEventElapsedTime)."""
        return self._base_ns + round(1e6 * self._base.elapsed_time(mark))


def when_done(work: Work, clock: Clock, note: Callable[[Mark], None]) -> None:
    """Call `note` with a mark of the work's completion.

    gloo runs the callback in the thread that completes the work. The callback needs the interpreter's lock, so the mark
    is late while pure Python code of the compute thread holds it. NCCL runs the callback at once in a side stream that
    waits for the collective, so the event comes after it. `work.wait()` on a side stream of our own would also mark
    the end, but it would release tensors that NCCL still reads, so recording could change results.
    Some works of gloo (reduce-scatter) have no future: their flights end when the wait for them ends.
    """
    try:
        future = work.get_future()
    except RuntimeError:
        return
    future.add_done_callback(lambda _: note(clock.mark()))
