"""The layers of one model chunk: Megatron's `TransformerBlock` with a walk that knows the wide stream.

Between layers travel up to three tensors: the stream's blocks, and when mixing is deferred the last layer's output
that is not yet written to them and the block that is read next. What enters and leaves a chunk is one tensor: the
stream itself ([K*S, B, D]; less to send than blocks and output apart), or after the last layer the final norm.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.utils import make_viewless_tensor
from torch import Tensor

from altup_moe.altup.mixing import Pending, Reading
from altup_moe.altup.stream import narrow
from altup_moe.model.altup_layer import AltUpLayer
from altup_moe.moe.halves import take_turns


class Travelling(NamedTuple):
    """What goes from layer to layer, a tuple of tensors as recomputation wants it: see altup.mixing.Pending."""

    blocks: Tensor | None
    y: Tensor | None = None
    u: Tensor | None = None


class AltUpBlock(TransformerBlock):
    """Built, named and fed like Megatron's block."""

    def forward(
        self, hidden_states: Tensor | None, attention_mask: Any = None, rotary_pos_emb: Any = None, **kwargs: Any
    ) -> Tensor:
        """Stream [K*S, B, D] (or what the stage before sent) -> stream; after the last layer normed [S, B, output]."""
        stream = hidden_states if self.pre_process else self.input_tensor
        stream = make_viewless_tensor(inp=stream, requires_grad=True, keep_graph=True)
        inputs = {"attention_mask": attention_mask, "rotary_pos_emb": rotary_pos_emb, **kwargs}
        # As in Megatron: under sequence parallelism each tensor rank drops out its own slice.
        forked = tensor_parallel.get_cuda_rng_tracker().fork() if self.config.sequence_parallel else nullcontext()
        with forked:
            hidden = self._walk(stream, inputs)
        if self.final_layernorm is not None:
            hidden = self.final_layernorm(hidden)
        # A pipeline schedule frees what it has sent: the result must own its memory.
        return make_viewless_tensor(inp=hidden, requires_grad=True, keep_graph=True)

    def _walk(self, stream: Tensor, inputs: dict[str, Any]) -> Tensor:
        halves = self.config.overlap_halves and self.training and stream.shape[1] % 2 == 0
        parts = [part.contiguous() for part in stream.chunk(2, dim=1)] if halves else [stream]
        recompute = self.config.recompute_granularity == "full" and self.training
        # Recomputation goes layer by layer, so there the halves meet after every layer.
        each = [range(i, i + 1) for i in range(len(self.layers))] if recompute else [range(len(self.layers))]
        states = [Travelling(part) for part in parts]
        for layers in each:
            advance = partial(self._advance_all, layers, inputs)
            flat = [tensor for state in states for tensor in state]
            flat = tensor_parallel.checkpoint(advance, False, *flat) if recompute else advance(*flat)
            states = [Travelling(*flat[i : i + 3]) for i in range(0, len(flat), 3)]
        ends = [self._end(state) for state in states]
        return torch.cat(ends, dim=1) if halves else ends[0]

    def _advance_all(self, layers: range, inputs: dict[str, Any], *flat: Tensor | None) -> tuple[Tensor | None, ...]:
        """Some layers on one part, or on two that take turns."""
        work: list[Callable[[], Travelling]] = [
            partial(self._advance, layers, inputs, Travelling(*flat[i : i + 3])) for i in range(0, len(flat), 3)
        ]
        done = take_turns(*work) if len(work) == 2 else [work[0]()]
        return tuple(tensor for state in done for tensor in state)

    def _advance(self, layers: range, inputs: dict[str, Any], state: Travelling) -> Travelling:
        for index in layers:
            state = self._layer(index, inputs, state)
        return state

    def _layer(self, index: int, inputs: dict[str, Any], state: Travelling) -> Travelling:
        layer = self.layers[index]
        if not (isinstance(layer, AltUpLayer) and self.config.overlap_mixing):
            return Travelling(layer(hidden_states=state.blocks, **inputs)[0])
        write = None if state.y is None else self.layers[index - 1].mixing().write
        assert state.blocks is not None
        stream, u = layer.deferred(Pending(state.blocks, state.y, write), state.u, self._next_reading(index), **inputs)
        return Travelling(None, None, u) if stream is None else Travelling(stream.blocks, stream.y, u)

    def _next_reading(self, index: int) -> Reading | None:
        """What is read after layer `index` of this chunk."""
        if index + 1 < len(self.layers):
            return Reading(self.layers[index + 1].mixing().read)
        if self.final_layernorm is not None and self.config.altup_recycled:
            # Recycled-AltUp sums the blocks before the final norm: one more read, with weights of 1.
            return Reading(torch.ones(self.config.altup_width, device=self.final_layernorm.weight.device), last=True)
        return None

    def _end(self, state: Travelling) -> Tensor:
        if state.blocks is None:
            assert state.u is not None
            return state.u
        if self.final_layernorm is None:
            return state.blocks
        c = self.config
        return narrow(state.blocks, c.altup_width, c.altup_variant, c.altup_recycled)
