"""Work that may wait: posted before a communication starts, done while it is in flight.

A layer that has something to do which its own output does not need posts it with `later`. Whoever starts a collective
calls `run_posted` before waiting for it. Whoever needs the result asks for it, and runs the work if nobody has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Later(Generic[T]):
    """A piece of work that is done once, at the first good moment."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._value: T | None = None
        self._grad = torch.is_grad_enabled()

    def run(self) -> None:
        """Do it, unless it is done."""
        if self._work is not None:
            work, self._work = self._work, None
            with torch.set_grad_enabled(self._grad):
                self._value = work()

    def result(self) -> T:
        """What it gave; done now if nobody had time for it."""
        self.run()
        _posted().pop(self, None)
        return self._value  # type: ignore[return-value]


# An ordered set. A context variable, so that each half of a micro-batch (overlap.two_batch) has its own.
_waiting: ContextVar[dict[Later, None]] = ContextVar("posted work")


def _posted() -> dict[Later, None]:
    try:
        return _waiting.get()
    except LookupError:
        _waiting.set({})
        return _waiting.get()


def later(work: Callable[[], T]) -> Later[T]:
    """Post work for the next window."""
    posted = Later(work)
    _posted()[posted] = None
    return posted


def run_posted() -> None:
    """Do everything posted, in order: the caller has a collective in flight."""
    waiting = list(_posted())
    _posted().clear()
    for work in waiting:
        work.run()
