"""The layers of one model chunk: Megatron's `TransformerBlock` with a walk that knows the wide stream.

The walk goes over steps of the stream: layers, or with altup.level branch two of each layer. Steps hand on up to six
tensors (`Travelling`): the stream's blocks, and when mixing is deferred also the outputs that are not yet written to
them, with the weights that write them, the next step's input, and what is known of the one after it. One tensor
enters and leaves a chunk: the stream ([K*S, B, D], less to send than blocks and output apart; more where it does not
tell what the next step reads, see `altup.shape.sent_blocks`), or after the last layer the output of the final norm.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from altup_moe.altup.mixing import Reading, read
from altup_moe.altup.shape import has_head, has_projections, segment_length
from altup_moe.altup.stream import narrow
from altup_moe.altup.variants import stream_row
from altup_moe.model.altup_layer import AltUpBranches, AltUpStep
from altup_moe.model.recompute import Flat, NoteOutput, Outputs, Tape, Travelling, flatten, recompute_steps, unflatten
from altup_moe.model.stream_ends import Collapse, Contract
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.model.two_step_walk import walk_two_steps
from altup_moe.overlap.two_batch import run_two_batch


class AltUpBlock(TransformerBlock):
    """Built, named and fed like Megatron's block."""

    def __init__(self, config: AltUpTransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        last = self.final_layernorm is not None
        row = stream_row(config.altup_variant, config.altup_width)
        # Whether what a step reads has to travel with the stream.
        self.reads_early = row.reads_early(config.altup_correct)
        self.lagged = row.lagged
        head = last and has_head(config.altup_width, config.altup_variant, config.altup_recycled)
        self.collapse = Collapse(config) if head else None
        self.contract = Contract(config) if last and has_projections(config.altup_width, config.altup_variant) else None

    @property
    def steps(self) -> list[Any]:
        """The steps of the walk, in order."""
        around = [layer.branches.values() if isinstance(layer, AltUpBranches) else [layer] for layer in self.layers]
        return [step for steps in around for step in steps]

    def forward(
        self,
        hidden_states: Tensor | None,
        attention_mask: Any = None,
        rotary_pos_emb: Any = None,
        context: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Stream [K*S, B, D] (or what the stage before sent) -> stream; after the last layer normed [S, B, output].

        Args:
            context: an encoder's output [T, B, E], for a stack with cross-attention.
            kwargs: what else layers take; masks are [B, ...].
        """
        stream = hidden_states if self.pre_process else self.input_tensor
        stream = make_viewless_tensor(inp=stream, requires_grad=True, keep_graph=True)
        inputs = {"attention_mask": attention_mask, "rotary_pos_emb": rotary_pos_emb, **kwargs}
        # As in Megatron: under sequence parallelism each tensor rank drops out its own slice.
        forked = tensor_parallel.get_cuda_rng_tracker().fork() if self.config.sequence_parallel else nullcontext()
        with forked:
            hidden = self._walk(stream, inputs, context)
        if self.final_layernorm is not None:
            hidden = self.final_layernorm(hidden)
        # A pipeline schedule frees what it has sent: the result must own its memory.
        return make_viewless_tensor(inp=hidden, requires_grad=True, keep_graph=True)

    def _walk(self, stream: Tensor, inputs: dict[str, Any], context: Tensor | None) -> Tensor:
        two_batch = self.config.overlap_two_batch and self.training and stream.shape[1] % 2 == 0
        parts = [part.contiguous() for part in stream.chunk(2, dim=1)] if two_batch else [stream]
        contexts = () if context is None else context.chunk(len(parts), dim=1)
        given = _inputs_of_each_half(inputs) if two_batch else [inputs]
        states = flatten([self._start(part) for part in parts])
        if self.config.recompute_granularity == "full" and self.training:
            states = self._recomputed(states, contexts, given)
        else:
            states = self._advance_all(range(len(self.steps)), given, *states, *contexts)
        ends = [self._end(state) for state in unflatten(states)]
        return torch.cat(ends, dim=1) if two_batch else ends[0]

    def _start(self, stream: Tensor) -> Travelling:
        """What the first step of this chunk begins with (`altup.shape.sent_blocks`)."""
        if not self.reads_early or self.pre_process:
            return Travelling(stream)
        width = self.config.altup_width
        if not self.lagged:
            blocks, seen = stream.chunk(2)
            weights = self.steps[0].arithmetic.reading(None).weights
            return Travelling(blocks, None, read(seen.contiguous(), weights, width)[1])
        positions = stream.shape[0] // (width + 1)
        blocks, u = stream.split([stream.shape[0] - positions, positions])
        return Travelling(blocks, None, u)

    def _recomputed(self, states: Flat, contexts: Flat, inputs: list[dict[str, Any]]) -> Flat:
        """Step by step, each recomputed in the backward pass. Halves of a micro-batch wait after each.

        Where two steps are under way at a time, both end before the next two begin.
        """
        count, together = len(self.steps), 2 if self._two_steps_at_a_time else 1
        segment = segment_length(count, together)
        for index in range(0, count, together):
            advance = partial(self._advance_all, range(index, min(index + together, count)), inputs)
            if not self._deferred:
                # Without deferral the outputs are not at hand: Megatron's, which keeps the whole state.
                states = tensor_parallel.checkpoint(advance, False, *states, *contexts)
                continue
            if index % segment == 0:
                tape = Tape(index, self._mix)
            states = recompute_steps(advance, tape, index, states, contexts)
        return states

    def _advance_all(
        self,
        steps: range,
        inputs: list[dict[str, Any]],
        *tensors: Tensor | None,
        outputs: list[Outputs] | None = None,
    ) -> Flat:
        """Some steps on a micro-batch, or on two alternating halves.

        Args:
            tensors: states, then contexts (or none). outputs: filled with what steps write to each half.
        """
        notes: list[NoteOutput] = [_forget] * len(inputs)
        if outputs is not None:
            outputs += [{} for _ in inputs]
            notes = [part.__setitem__ for part in outputs]
        size = len(inputs) * len(Travelling._fields)
        contexts = tensors[size:] or [None] * len(inputs)
        work = [
            partial(self._advance, steps, {**given, "context": context}, state, note)
            for state, context, given, note in zip(unflatten(tensors[:size]), contexts, inputs, notes, strict=True)
        ]
        return flatten(run_two_batch(*work) if len(work) == 2 else [work[0]()])

    def _advance(self, steps: range, inputs: dict[str, Any], state: Travelling, note: NoteOutput) -> Travelling:
        if self._two_steps_at_a_time:
            return walk_two_steps(
                {index: self.steps[index].arithmetic for index in steps},
                {index: self._next_reading(index) for index in steps},
                lambda index, u: self.steps[index].compute(u, **inputs)[0],
                state,
                note,
                branches=self.config.altup_level == "branch",
            )
        for index in steps:
            state = self._step(index, inputs, state)
            if state.y is not None:
                note(index, state.y)
        return state

    @property
    def _two_steps_at_a_time(self) -> bool:
        return self.config.overlap_two_steps and self._deferred

    @property
    def _deferred(self) -> bool:
        return self.config.overlap_mixing and all(isinstance(step, AltUpStep) for step in self.steps)

    def _step(self, index: int, inputs: dict[str, Any], state: Travelling) -> Travelling:
        step = self.steps[index]
        if not isinstance(step, AltUpStep):
            return Travelling(step(hidden_states=state.blocks, **inputs)[0])
        if not self._deferred:
            after = self._next_reading(index) if self.config.altup_correct == "delayed" else None
            return step(state, after, **inputs)
        return step.arithmetic.deferred(state, self._next_reading(index), partial(step.compute, **inputs))

    def _mix(self, index: int, state: Travelling, y: Tensor) -> Travelling:
        """The state after step `index`, whose output is known."""
        return self.steps[index].arithmetic.mix(state, self._next_reading(index), y)

    def _next_reading(self, index: int) -> Reading | None:
        """The read after step `index` of this chunk; None if the chunk has none."""
        if index + 1 < len(self.steps):
            step = self.steps[index + 1]
            return step.arithmetic.reading(self._next_reading(index + 1) if step.joins else None)
        if self.final_layernorm is None or not self.config.altup_recycled:
            return None
        if self.collapse is not None:
            return self.collapse.reading()
        if self.lagged:
            return Reading(None, last=True)
        # Recycled-AltUp sums the blocks before the final norm: one more read, with weights of 1.
        return Reading(torch.ones(self.config.altup_width, device=self.final_layernorm.weight.device), last=True)

    def _end(self, state: Travelling) -> Tensor:
        if state.blocks is None:
            assert state.u is not None
            return state.u
        if self.final_layernorm is None:
            return state.blocks if state.u is None else torch.cat([state.blocks, state.u])
        if self.contract is not None:
            return self.contract(state.blocks)
        if self.collapse is not None:
            return self.collapse(state.blocks)
        c = self.config
        if state.u is not None and c.altup_recycled:
            return state.u
        return narrow(state.blocks, c.altup_width, c.altup_variant, c.altup_recycled)


def _forget(index: int, y: Tensor) -> None:
    """What a step writes is not noted."""


def _inputs_of_each_half(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """A layer's inputs for each half of a micro-batch: masks are cut along the batch."""
    masks = {name: value.chunk(2) for name, value in inputs.items() if name.endswith("mask") and value is not None}
    return [{**inputs, **{name: cut[half] for name, cut in masks.items()}} for half in (0, 1)]
