"""Record spans: the observed code calls `span`, `in_flight`, `waiting` and `step`, and `record` surrounds it.

Without a recording each call only reads a module variable.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch.distributed import Work

from altup_moe.timeline.clocks import Clock, CudaClock, HostClock
from altup_moe.timeline.recorder import OpenSpan, Recorder
from altup_moe.timeline.records import Recording


class _Nothing:
    """The context manager that replaces a span without a recording; one shared object, so that it allocates nothing."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        return None


_NOTHING = _Nothing()
_recorder: Recorder | None = None


def current() -> Recorder | None:
    """The current recorder, or None."""
    return _recorder


def span(name: str, *, backward: bool = False) -> AbstractContextManager[None]:
    """Inside, the compute thread is busy with `name` and does not switch to another half of the micro-batch."""
    if _recorder is None:
        return _NOTHING
    return _recorder.open(name, "compute", backward)


def in_flight(name: str, work: Work, *, backward: bool = False) -> None:
    """Record the flight of an asynchronous collective that was just launched; it ends when the collective completes."""
    if _recorder is not None:
        _recorder.launched(name, work, backward)


def waiting(name: str, work: Work | None = None, *, backward: bool = False) -> AbstractContextManager[None]:
    """Inside, the compute thread is blocked by `work.wait()`.

    If `work` was given to `in_flight`, its flight ends no later than this span. Another thread notes the completion,
    and may do so a little after the waiting thread has continued.
    """
    if _recorder is None:
        return _NOTHING
    return _recorder.wait(name, work, backward)


def step() -> AbstractContextManager[None]:
    """Inside is one training step."""
    if _recorder is None:
        return _NOTHING
    interval = OpenSpan("step", "compute", "forward", _recorder.clock)
    _recorder.steps.append(interval)
    return interval


@contextmanager
def record(rank: int, clock: Clock | None = None) -> Iterator[Recording]:
    """Record this process inside. The recording is filled at the end, also after an error.

    Args:
        rank: number of the recorded rank.
        clock: source of times; None takes CUDA events where CUDA is present, else the host's clock.

    Raises:
        RuntimeError: this process is already being recorded.
    """
    global _recorder
    if _recorder is not None:
        raise RuntimeError("a recording is under way in this process")
    recording = Recording(rank, platform.node())
    recorder = _recorder = Recorder(clock or (CudaClock() if torch.cuda.is_available() else HostClock()))
    try:
        yield recording
    finally:
        _recorder = None
        for close in recorder.closing:
            close()
        recorder.fill(recording)
