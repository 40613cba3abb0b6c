"""Full recomputation of steps on the wide stream that keeps one block a step instead of K.

A recomputed step needs the state it started from: K blocks and more. Those follow from the segment's first state and
the outputs y of the steps before, by mixing alone, without running a step again (x_{l+1} = M x_l + g (x) y_l). So
a segment of steps keeps its first state and each step's y; the backward pass rebuilds the states in between once.

Steps are recomputed one by one, or where two are under way at a time (model.two_step_walk) in twos.

A step's coefficients are also used in its neighbours' recomputations, so their gradients come in several parts.
Megatron's overlapped reduction counts the parts of the first step and waits for as many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from altup_moe.parallel.rng import rng_state, set_rng_state


class Travelling(NamedTuple):
    """What goes from step to step: the stream, which need not be formed yet, and what the next steps read of it.

    ``y``: the last step's output, not yet written; ``earlier``: that of the step before it, if neither is.
    ``weights``: with which they will be: W of `altup.mixing.Pending`, or the last g [K, T] if each token has its own.
    ``u``: what the next step reads; ``through``: what is known of the read after it (`altup.mixing.Ahead`).
    """

    blocks: Tensor | None
    y: Tensor | None = None
    u: Tensor | None = None
    weights: Tensor | None = None
    earlier: Tensor | None = None
    through: Tensor | None = None


Flat = tuple[Tensor | None, ...]
"""The states of one or two parts of a micro-batch, one after another, as autograd wants them."""


def flatten(states: Sequence[Travelling]) -> Flat:
    """States as one tuple of tensors."""
    return tuple(tensor for state in states for tensor in state)


def unflatten(flat: Sequence[Tensor | None]) -> list[Travelling]:
    """The inverse of `flatten`."""
    size = len(Travelling._fields)
    return [Travelling(*flat[i : i + size]) for i in range(0, len(flat), size)]


Outputs = dict[int, Tensor]
"""What steps have written to one part of a micro-batch, by the step's index: y [S, B, D]."""
NoteOutput = Callable[[int, Tensor], Any]
"""Hears what steps write: the step's index, y [S, B, D]."""


class Tape:
    """The states of one segment of steps, kept as its first one and every step's output.

    `mix(index, state, y)` is the state after step `index`, from the state before it and the step's output.
    """

    def __init__(self, first: int, mix: Callable[[int, Travelling, Tensor], Travelling]) -> None:
        self._first, self._mix = first, mix
        self._start: list[Travelling] = []
        self._outputs: dict[int, list[Tensor]] = {}
        self._states: dict[int, list[Travelling]] = {}
        self._asked_for: set[int] = set()

    def note(self, index: int, before: Flat, outputs: Sequence[Outputs]) -> None:
        """What steps from `index` on started from, and what they have written to each part."""
        # Detached, or the tape would hold the graph that holds the tape.
        if index == self._first:
            self._start = [Travelling(*(t if t is None else t.detach() for t in s)) for s in unflatten(before)]
        self._asked_for.add(index)
        for at in outputs[0]:
            self._outputs[at] = [part[at].detach() for part in outputs]

    @torch.no_grad()
    def state_before(self, index: int) -> list[Travelling]:
        """The state that steps from `index` on started from; each may be asked for once, from the last to the first."""
        if not self._states:
            states = self._start
            for at in range(self._first, index):
                if at in self._asked_for:
                    self._states[at] = states
                states = [self._mix(at, s, y) for s, y in zip(states, self._outputs.pop(at), strict=True)]
            self._states[index] = states
        return self._states.pop(index)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, advance: Callable[..., Flat], tape: Tape, index: int, states: int, *inputs: Tensor | None
    ) -> Flat:
        ctx.advance, ctx.tape, ctx.index, ctx.rng = advance, tape, index, rng_state()
        ctx.save_for_backward(*inputs[states:])
        outputs: list[Outputs] = []
        after = advance(*inputs, outputs=outputs)
        tape.note(index, inputs[:states], outputs)
        return after

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        # The node outlives its backward pass, for the loss does.
        tape, ctx.tape = ctx.tape, None
        before = [
            None if tensor is None else tensor.detach().requires_grad_()
            for tensor in (*flatten(tape.state_before(ctx.index)), *ctx.saved_tensors)
        ]
        del tape
        here = rng_state()
        set_rng_state(ctx.rng)  # the same dropout
        with torch.enable_grad():
            after = ctx.advance(*before)
        set_rng_state(here)
        # Fixed weights are part of a state and have no gradient, but autograd hands one to each output.
        known = [(t, g) for t, g in zip(after, grads, strict=True) if t is not None and g is not None]
        known = [(t, g) for t, g in known if t.requires_grad]
        torch.autograd.backward([t for t, _ in known], [g for _, g in known])
        return (None, None, None, None, *(None if tensor is None else tensor.grad for tensor in before))


def recompute_steps(advance: Callable[..., Flat], tape: Tape, index: int, before: Flat, shared: Flat = ()) -> Flat:
    """The state after steps from `index` on, by `advance(*before, *shared, outputs=[])`.

    Nothing but the tape's share is kept of it: `advance` adds what steps write to ``outputs``, one entry for each part.
    ``shared``: what all steps read, and their gradients flow to: an encoder's output.
    """
    return _Recomputed.apply(advance, tape, index, len(before), *before, *shared)
