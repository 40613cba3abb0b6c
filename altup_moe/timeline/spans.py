"""Recording spans: `span`, `in_flight`, `waiting` and `step` in the code that is observed, `record` around it.

While nothing records, each of them is one look at a module's variable.
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
    """What stands in for a span while nothing records; shared, so that it costs no allocation."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        return None


_NOTHING = _Nothing()
_recorder: Recorder | None = None


def current() -> Recorder | None:
    """The recorder of the recording under way, or None."""
    return _recorder


def span(name: str, *, backward: bool = False) -> AbstractContextManager[None]:
    """The compute thread is busy with `name` inside, and does not hand over to another half of the micro-batch."""
    if _recorder is None:
        return _NOTHING
    return _recorder.open(name, "compute", backward)


def in_flight(name: str, work: Work, *, backward: bool = False) -> None:
    """An asynchronous collective has just been launched: its flight begins now and ends when it completes."""
    if _recorder is not None:
        _recorder.launched(name, work, backward)


def waiting(name: str, work: Work | None = None, *, backward: bool = False) -> AbstractContextManager[None]:
    """The compute thread is blocked inside, by `work.wait()`.

    With the `work` that was given to `in_flight`, its flight ends no later than this span: its completion is noted by
    another thread, which may come a little after the thread that waits.
    """
    if _recorder is None:
        return _NOTHING
    return _recorder.wait(name, work, backward)


def step() -> AbstractContextManager[None]:
    """One training step is taken inside."""
    if _recorder is None:
        return _NOTHING
    interval = OpenSpan("step", "compute", "forward", _recorder.clock)
    _recorder.steps.append(interval)
    return interval


@contextmanager
def record(rank: int, clock: Clock | None = None) -> Iterator[Recording]:
    """Record this process inside; the recording is filled at the end, also when an error ends it.

    Args:
        rank: whose recording it is.
        clock: how moments are taken; CUDA events where CUDA is present, the host's clock elsewhere.

    Raises:
        RuntimeError: a recording is under way.
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
