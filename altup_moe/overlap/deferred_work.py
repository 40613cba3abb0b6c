"""Deferred work: a layer posts it, and it runs while a collective is in flight.

A layer posts work that its own output does not need with `later`. Code that starts a collective calls `run_posted`
before it waits. `Later.result` runs the work if it has not run yet.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


class Later(Generic[Result]):
    """Work that runs once."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work: Callable[[], Result] | None = work
        self._value: Result | None = None
        self._grad = torch.is_grad_enabled()

    def run(self) -> None:
        """Run the work, unless it has run."""
        if self._work is not None:
            work, self._work = self._work, None
            with torch.set_grad_enabled(self._grad):
                self._value = work()

    def result(self) -> Result:
        """The result; runs the work if it has not run."""
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


def later(work: Callable[[], Result]) -> Later[Result]:
    """Post work for the next collective in flight."""
    posted = Later(work)
    _posted()[posted] = None
    return posted


def run_posted() -> None:
    """Run all posted work in order. The caller has a collective in flight."""
    waiting = list(_posted())
    _posted().clear()
    for work in waiting:
        work.run()
