"""Two pieces of work that take turns on one thread: one computes while the other communicates.

Each runs in a coroutine of its own. Where it would wait for a collective, it calls `yield_to_other`, and the other
continues from where it yielded. Where it needs a result of the other, it calls `wait_until`.

Why greenlets and not threads: autograd numbers operations per thread and runs them backwards in that order, so on one
thread the backward pass alternates in the mirrored order. Both share the grad mode and the random state.

Who takes turns: the halves of a micro-batch (`overlap.two_batch`), or every other step of a stream whose outputs are
delayed (`model.two_step_walk`). The order of turns depends on the code alone, so all ranks start their collectives in
the same order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any

_current: contextvars.ContextVar[Coroutine | None] = contextvars.ContextVar("coroutine", default=None)


class Coroutine:
    """One of the two: its index (0 or 1), what they share, and its result."""

    def __init__(self, shared: Any, index: int, work: Callable[[], Any]) -> None:
        from greenlet import greenlet  # only runs with overlap.microbatch_halves or delayed outputs need it

        self.shared, self.index, self.result = shared, index, None
        self.other: Coroutine | None = None
        self.greenlet = greenlet(lambda: self._run(work))
        # Posted work (overlap.deferred_work) belongs to one of them: each starts from an empty context.
        self.greenlet.gr_context = contextvars.Context()

    def _run(self, work: Callable[[], Any]) -> None:
        _current.set(self)
        self.result = work()

    @property
    def ended(self) -> bool:
        """Whether its work is done."""
        return self.greenlet.dead

    def switch_to_other(self) -> None:
        """Let the other go on, unless it has ended."""
        if self.other is not None and not self.other.ended:
            self.other.greenlet.switch()


def running() -> Coroutine | None:
    """The coroutine that runs; None outside `alternate`."""
    return _current.get()


def yield_to_other() -> None:
    """Run the other until it yields. Outside `alternate` it does nothing."""
    if here := running():
        here.switch_to_other()


def wait_until(ready: Callable[[], bool], what: str) -> None:
    """Let the other go on until `ready()`.

    Raises:
        RuntimeError: the other ends before. ``what`` says what was waited for.
    """
    while not ready():
        here = running()
        if here is None or here.other is None or here.other.ended:
            raise RuntimeError(f"{what} is waited for, and who would bring it has ended")
        here.switch_to_other()


def alternate(first: Callable[[], Any], second: Callable[[], Any], shared: Any = None) -> tuple[Any, Any]:
    """Run both to their ends; returns both results. An exception of one ends the other and is raised here.

    Args:
        shared: what both find as `running().shared`.
    """
    both = [Coroutine(shared, index, work) for index, work in enumerate((first, second))]
    both[0].other, both[1].other = both[1], both[0]
    try:
        # A switch returns when one has ended; the other then goes on alone.
        for coroutine in both:
            while not coroutine.ended:
                coroutine.greenlet.switch()
    finally:
        for coroutine in both:
            if coroutine.greenlet and not coroutine.ended:
                coroutine.greenlet.throw()
        results = both[0].result, both[1].result
        for coroutine in both:
            # They know each other, and their greenlets know them: left so, results would live until Python looks for
            # such circles, and with them what autograd keeps.
            vars(coroutine).clear()
    return results
