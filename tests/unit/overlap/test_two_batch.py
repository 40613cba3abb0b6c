"""Two halves take turns at the places that say so, meet where they must, and fail together."""

from __future__ import annotations

import pytest
import torch

from altup_moe.overlap.alternate import yield_to_other
from altup_moe.overlap.deferred_work import later, run_posted
from altup_moe.overlap.two_batch import compute_together, micro_batch_half, run_two_batch


def test_turns_change_where_a_half_steps_aside() -> None:
    seen: list[str] = []

    def half(name: str, steps: int) -> str:
        for n in range(steps):
            seen.append(f"{name}{n}")
            yield_to_other()
        return name

    assert run_two_batch(lambda: half("a", 2), lambda: half("b", 4)) == ("a", "b")
    assert seen == ["a0", "b0", "a1", "b1", "b2", "b3"]


def test_meeting_sees_both_halves_in_their_order() -> None:
    def half(value: int) -> list:
        results = []
        for n in range(3):
            # Half 1 arrives first every other time.
            if (n + value) % 2:
                yield_to_other()
            results.append(
                compute_together((micro_batch_half(), value + n), lambda parts: [("to 0", parts), ("to 1", parts)])
            )
        return results

    first, second = run_two_batch(lambda: half(10), lambda: half(21))
    parts = [[(0, 10 + n), (1, 21 + n)] for n in range(3)]
    assert first == [("to 0", p) for p in parts]
    assert second == [("to 1", p) for p in parts]


def test_outside_there_is_one_whole() -> None:
    yield_to_other()
    assert micro_batch_half() == 0
    assert compute_together(3, lambda parts: [len(parts), "nobody"]) == 1


def test_posted_work_belongs_to_its_half() -> None:
    seen: list[int] = []

    def half() -> None:
        index = micro_batch_half()
        later(lambda: seen.append(index))
        yield_to_other()
        run_posted()
        assert seen[-1] == index

    run_two_batch(half, half)
    assert sorted(seen) == [0, 1]


@pytest.mark.parametrize("failing", [0, 1])
def test_what_one_half_raises_is_raised_and_ends_the_other(failing: int) -> None:
    ended: list[int] = []

    def half(index: int) -> None:
        try:
            yield_to_other()
            if index == failing:
                raise ValueError("no room")
            yield_to_other()
            yield_to_other()
        finally:
            ended.append(index)

    with pytest.raises(ValueError, match="no room"):
        run_two_batch(lambda: half(0), lambda: half(1))
    assert sorted(ended) == [0, 1]


def test_waiting_for_a_half_that_has_ended_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="has ended"):
        run_two_batch(lambda: compute_together(1, lambda parts: parts), lambda: None)


def test_backward_takes_the_same_turns_mirrored() -> None:
    """What makes the halves overlap in the backward pass: autograd's order is the order of creation, reversed."""
    seen: list[str] = []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, name):
            ctx.name = name
            seen.append(name)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            seen.append(ctx.name)
            return grad, None

    def half(name: str) -> torch.Tensor:
        x = torch.ones(1, requires_grad=True)
        for n in range(3):
            x = Mark.apply(x, f"{name}{n}")
            yield_to_other()
        return x

    first, second = run_two_batch(lambda: half("a"), lambda: half("b"))
    forward = list(seen)
    seen.clear()
    (first + second).backward()
    assert seen == forward[::-1]
    assert forward == ["a0", "b0", "a1", "b1", "a2", "b2"]
