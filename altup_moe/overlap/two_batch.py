"""Two halves of a micro-batch that take turns: one computes while the other's communication is in flight.

Each half runs the same code as a whole micro-batch would, as a coroutine of its own. Where it would wait for a
collective it calls `step_aside`, and the other half goes on from where it had stepped aside. What must see the whole
micro-batch (routing: its balance loss and its capacity) calls `meet`.

Why greenlets and not threads: autograd numbers operations per thread and runs them backwards in that order, so on one
thread the backward pass takes the same turns, mirrored. Grad mode and random state stay one as well.

    half 0:  attention | meet .......... dispatch>  .......  | experts, combine>  .......  | attention
    half 1:            attention, route, dispatch>  | experts, combine>  | attention, route ...

The turns depend on the code alone, so all ranks start their collectives in the same order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_current: contextvars.ContextVar[_Half | None] = contextvars.ContextVar("half", default=None)


class _Pair:
    """What the two halves share."""

    def __init__(self) -> None:
        self.halves: list[_Half] = []
        self.values: dict[int, Any] = {}
        self.results: dict[int, Any] = {}


class _Half:
    """One half: its coroutine and its place."""

    def __init__(self, pair: _Pair, index: int, work: Callable[[], Any]) -> None:
        from greenlet import greenlet  # only runs with overlap.microbatch_halves need it

        self.pair, self.index, self.result = pair, index, None
        self.coroutine = greenlet(lambda: self._run(work))
        # Posted work (overlap.deferred_work) belongs to a half: each starts from an empty context.
        self.coroutine.gr_context = contextvars.Context()

    def _run(self, work: Callable[[], Any]) -> None:
        _current.set(self)
        self.result = work()

    def give_way(self) -> None:
        other = self.pair.halves[1 - self.index]
        if not other.coroutine.dead:
            other.coroutine.switch()


def half_index() -> int:
    """0 or 1 inside `take_turns`, 0 elsewhere."""
    half = _current.get()
    return half.index if half else 0


def step_aside() -> None:
    """Let the other half go on until it steps aside itself. Outside `take_turns`, nothing."""
    half = _current.get()
    if half:
        half.give_way()


def meet(value: T, together: Callable[[list[T]], list[Any]]) -> Any:
    """Wait until both halves have come here, then compute one thing from both values.

    Args:
        value: this half's part.
        together: from all parts (two; one outside `take_turns`) to a result for each.
    """
    half = _current.get()
    if half is None:
        return together([value])[0]
    pair, other = half.pair, half.pair.halves[1 - half.index]
    pair.values[half.index] = value
    if other.index in pair.values:
        results = together([pair.values[0], pair.values[1]])
        pair.values.clear()
        pair.results[other.index] = results[other.index]
        return results[half.index]
    while half.index not in pair.results:
        if other.coroutine.dead:
            raise RuntimeError(f"half {half.index} waits for a half that has ended")
        half.give_way()
    return pair.results.pop(half.index)


def take_turns(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run both halves to their ends. What one raises is raised here, and the other is ended too."""
    pair = _Pair()
    pair.halves = [_Half(pair, index, work) for index, work in enumerate((first, second))]
    try:
        # A switch returns when a half has ended; the other then goes on alone.
        for half in pair.halves:
            while not half.coroutine.dead:
                half.coroutine.switch()
    finally:
        for half in pair.halves:
            if half.coroutine and not half.coroutine.dead:
                half.coroutine.throw()
    return pair.halves[0].result, pair.halves[1].result
