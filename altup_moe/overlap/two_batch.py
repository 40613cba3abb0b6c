"""Two-batch overlap: the two halves of a micro-batch alternate, and one computes while the other communicates.

Each half runs the code of a whole micro-batch in a coroutine of its own. Where it would wait for a collective, it
calls `yield_to_other_half`, and the other half continues from where it yielded. What needs the whole micro-batch (the
router's balance loss and capacity) calls `compute_together`.

Why greenlets and not threads: autograd numbers operations per thread and runs them backwards in that order, so on one
thread the backward pass alternates in the mirrored order. Both halves share the grad mode and the random state.

    half 0:  attention | wait .......... dispatch>  .......  | experts, combine>  .......  | attention
    half 1:            attention, route, dispatch>  | experts, combine>  | attention, route ...

The order of the halves depends on the code alone, so all ranks start their collectives in the same order.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, TypeVar

HalfValue = TypeVar("HalfValue")

_current: contextvars.ContextVar[_Half | None] = contextvars.ContextVar("half", default=None)


class _Pair:
    """State that the two halves share."""

    def __init__(self) -> None:
        self.halves: list[_Half] = []
        self.values: dict[int, Any] = {}
        self.results: dict[int, Any] = {}


class _Half:
    """One half: its coroutine, index and result."""

    def __init__(self, pair: _Pair, index: int, work: Callable[[], Any]) -> None:
        from greenlet import greenlet  # only runs with overlap.microbatch_halves need it

        self.pair, self.index, self.result = pair, index, None
        self.coroutine = greenlet(lambda: self._run(work))
        # Posted work (overlap.deferred_work) belongs to a half: each starts from an empty context.
        self.coroutine.gr_context = contextvars.Context()

    def _run(self, work: Callable[[], Any]) -> None:
        _current.set(self)
        self.result = work()

    def switch_to_other(self) -> None:
        other = self.pair.halves[1 - self.index]
        if not other.coroutine.dead:
            other.coroutine.switch()


def micro_batch_half() -> int:
    """Index of the half that runs: 0 or 1 inside `run_two_batch`, 0 elsewhere."""
    half = _current.get()
    return half.index if half else 0


def yield_to_other_half() -> None:
    """Run the other half until it yields. Outside `run_two_batch` it does nothing."""
    half = _current.get()
    if half:
        half.switch_to_other()


def compute_together(value: HalfValue, together: Callable[[list[HalfValue]], list[Any]]) -> Any:
    """Wait until both halves call this, then compute their results from both values.

    Args:
        value: this half's value.
        together: function from the list of values (two; one outside `run_two_batch`) to a list of results, in order.
    Returns:
        This half's result.
    Raises:
        RuntimeError: the other half ends without a call.
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
        half.switch_to_other()
    return pair.results.pop(half.index)


def run_two_batch(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run both halves to their ends; returns both results. An exception of one ends the other and is raised here."""
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
