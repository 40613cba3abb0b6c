"""Two-batch overlap: the two halves of a micro-batch alternate, and one computes while the other communicates.

Each half runs the code of a whole micro-batch (`overlap.alternate`). What needs the whole micro-batch (the router's
balance loss and capacity) calls `compute_together`.

    half 0:  attention | wait .......... dispatch>  .......  | experts, combine>  .......  | attention
    half 1:            attention, route, dispatch>  | experts, combine>  | attention, route ...
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from altup_moe.overlap.alternate import Coroutine, alternate, running, wait_until

HalfValue = TypeVar("HalfValue")


class _Pair:
    """State that the two halves share."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self.results: dict[int, Any] = {}


def _half() -> Coroutine | None:
    here = running()
    return here if here is not None and isinstance(here.shared, _Pair) else None


def micro_batch_half() -> int:
    """Index of the half that runs: 0 or 1 inside `run_two_batch`, 0 elsewhere."""
    half = _half()
    return half.index if half else 0


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
    half = _half()
    if half is None:
        return together([value])[0]
    pair, other = half.shared, 1 - half.index
    pair.values[half.index] = value
    if other in pair.values:
        results = together([pair.values[0], pair.values[1]])
        pair.values.clear()
        pair.results[other] = results[other]
        return results[half.index]
    wait_until(lambda: half.index in pair.results, f"what half {half.index} computes together with the other")
    return pair.results.pop(half.index)


def run_two_batch(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Run both halves to their ends; returns both results. An exception of one ends the other and is raised here."""
    return alternate(first, second, _Pair())
