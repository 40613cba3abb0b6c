"""The walk over steps whose outputs are delayed (altup.correct): two steps are under way, and take turns.

Step s + 1 reads nothing of step s's output, so it may begin while that is still travelling between experts. Two
coroutines (`overlap.alternate`) have every other step each. With experts in every step,

    even steps:  attention 0, dispatch> | ................. experts, combine> | attention 2, dispatch> | ...
    odd steps:                          | attention 1, dispatch> ............ | experts, combine> | ...

each exchange flies while the other coroutine computes, in one micro-batch. Before step s its coroutine runs the pass
over the stream of step s - 1, which needs the output of step s - 2, its own last one, and gives step s its input.

Around branches the even steps are attention, which has no exchange. The odd ones begin, and attention lets them go on
after each step: then the first attention too has an exchange to run beside.

    attention:                | attention 0 |          | attention 1 |                    | attention 2 |
    experts:        dispatch> | ........... | experts, combine> .... | output 0, dispatch> | ......... | experts, ...

No tensor is stale: the model is defined so (u_{s+1} = r M x_s), and the walk computes what steps one by one would.
The backward pass alternates in the mirrored order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from altup_moe.altup.mixing import Reading
from altup_moe.model.recompute import NoteOutput, Travelling
from altup_moe.model.step_arithmetic import StepArithmetic
from altup_moe.overlap.alternate import alternate, wait_until, yield_to_other


class _TwoSteps:
    """What the coroutines share: of each step its arithmetic, the read after it, and how far it is."""

    def __init__(
        self,
        steps: Mapping[int, StepArithmetic],
        readings: Mapping[int, Reading | None],
        compute: Callable[[int, Tensor], Tensor],
        state: Travelling,
        note: NoteOutput,
    ) -> None:
        self.steps, self.readings, self.compute, self.note = steps, readings, compute, note
        self.first, self.last = min(steps), max(steps)
        self.begun, self.first_input = steps[self.first].begin(state)
        self.ahead: dict[int, Any] = {}
        """Of a step, what needs no output, until its own is there and somebody finishes it."""
        self.outputs: dict[int, Tensor] = {}

    def walk(self, begin: int, yields: bool = False) -> None:
        """Every other step, from step `begin`; and after the last but one the pass of the last.

        ``yields``: the others go on after each step, as it has no exchange to yield at.
        """
        for s in range(begin, self.last + 2, 2):
            u = self.first_input if s == self.first else self._input(s)
            if s in self.steps:
                assert u is not None
                self.outputs[s] = y = self.steps[s].written(u, self.compute(s, u))
                self.note(s, y)
                if yields:
                    yield_to_other()

    def _input(self, s: int) -> Tensor | None:
        """What step s reads, by the pass of the step before it."""
        before = self.begun if s == self.first + 1 else self.state_after(s - 2)
        self.ahead[s - 1] = ahead = self.steps[s - 1].look_ahead(before, self.readings[s - 1])
        return ahead.a

    def state_after(self, s: int) -> Travelling:
        """Once the step's output and its pass are there."""
        wait_until(lambda: s in self.ahead, f"the pass of step {s}")
        return self.steps[s].finish(self.ahead.pop(s), self.outputs.pop(s), self.readings[s])


def walk_two_steps(
    steps: Mapping[int, StepArithmetic],
    readings: Mapping[int, Reading | None],
    compute: Callable[[int, Tensor], Tensor],
    state: Travelling,
    note: NoteOutput,
    branches: bool = False,
) -> Travelling:
    """The state after some steps in a row.

    Args:
        steps: by their index. readings: after each, the next read; None at the end of a chunk.
        compute: (index of a step, u [S, B, D]) -> its output [S, B, D].
        state: before the first step.
        note: hears what each step writes.
        branches: the first step of every two is attention, which yields nowhere.
    """
    two = _TwoSteps(steps, readings, compute, state, note)
    first, second = partial(two.walk, two.first, branches), partial(two.walk, two.first + 1)
    alternate(*((second, first) if branches else (first, second)))
    return two.state_after(two.last)
