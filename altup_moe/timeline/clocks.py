"""How a moment is taken: from the host's clock, or as an event in a CUDA stream that is read at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.distributed import Work

Mark = Any
"""A moment as its clock took it: ns on the host, an event on CUDA."""


class Clock(Protocol):
    """Takes moments while recording, and turns them into ns of the host's monotonic clock afterwards."""

    def mark(self) -> Mark:
        """Now."""

    def finish(self) -> None:
        """Wait until every mark can be read."""

    def to_ns(self, mark: Mark) -> int:
        """A mark as ns of the host's monotonic clock."""


class HostClock:
    """For CPU and gloo, where calls return when their work is done."""

    def mark(self) -> Mark:
        """Now, ns. All processes of one host share this clock (CLOCK_MONOTONIC on Linux)."""
        return time.monotonic_ns()

    def finish(self) -> None:
        """Nothing to wait for."""

    def to_ns(self, mark: Mark) -> int:
        """The mark itself."""
        return mark


class CudaClock:
    """For CUDA and NCCL, where calls return at once: a mark is an event in the current stream. Not yet run on a GPU.

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
        """Wait for the device: an event can be read once it has happened."""
        torch.cuda.synchronize()

    def to_ns(self, mark: Mark) -> int:
        """Device time since the first mark (resolution about 0.5 us, CUDA runtime's cudaEventElapsedTime)."""
        return self._base_ns + round(1e6 * self._base.elapsed_time(mark))


def when_done(work: Work, clock: Clock, note: Callable[[Mark], None]) -> None:
    """Call `note` with a mark of the work's completion.

    gloo runs the callback in the thread that completed the work; it needs the interpreter's lock, so the mark is late
    by the time that pure Python code of the compute thread holds it. NCCL runs it at once, in a side stream of torch's
    pool that waits for the collective, so the event lands behind it. `work.wait()` on a side stream of our own would
    do the same, but it also lets go of the tensors that NCCL still reads: recording could then change results.
    Some of gloo's works (reduce-scatter) have no future: those flights end with the wait for them.
    """
    try:
        future = work.get_future()
    except RuntimeError:
        return
    future.add_done_callback(lambda _: note(clock.mark()))
