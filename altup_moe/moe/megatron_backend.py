"""Megatron's MoE layer with overlap: other work runs while its all-to-all is in flight.

The layer and its dispatcher are used through their public phases: route, preprocess, dispatch, experts, combine,
postprocess. Two of them communicate, and there the posted work (overlap.deferred_work) and the other half of the
micro-batch (overlap.two_batch) get their turn:

    route | dispatch: start, posted work, step aside, wait | experts | combine: start, step aside, wait | unpermute
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher
from torch import Tensor

from altup_moe.overlap.collectives import all_to_all
from altup_moe.overlap.deferred_work import Later, later, run_posted
from altup_moe.overlap.expert_exchange import exchange_rows
from altup_moe.overlap.two_batch import micro_batch_half


class _NoGroup:
    """A group of one: Megatron's own exchange over it hands its input back."""

    def size(self) -> int:
        return 1

    def rank(self) -> int:
        return 0


class OverlappedDispatcher(MoEAlltoAllTokenDispatcher):
    """Megatron's all-to-all dispatcher whose exchanges are started, then waited for."""

    num_local_experts: int
    probs: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The parent's phases keep their bookkeeping and exchange over nobody; the exchange itself is ours.
        self.exchange_group: Any = self.ep_group
        self.ep_group: Any = _NoGroup()
        # Megatron's phases read a copy, in which the capacity says whether rows are counted; `overlap` is the layer's.
        self.overlap: Any = self.config
        self.config: Any = copy.copy(self.config)
        self.counts_on_host = True
        """Whether the experts want the number of rows of each on the host."""

    def allow_fewer_routes(self, fewer: bool) -> None:
        """Whether the next tokens may have fewer than top_k routes, as padding has: rows are then counted."""
        # Megatron counts them where a capacity is set, which asks a GPU once more.
        self.config.moe_expert_capacity_factor = 1.0 if fewer else None

    def _maybe_dtoh_and_synchronize(self, point: str, tokens_per_expert: Any = None) -> Any:
        """Megatron's: sizes come to the host, which waits for them. Where nothing there needs them, they stay."""
        alone = self.exchange_group.size() * self.tp_size == 1
        if alone and not self.counts_on_host and isinstance(self.num_out_tokens, int):
            return tokens_per_expert
        return super()._maybe_dtoh_and_synchronize(point, tokens_per_expert)

    def dispatch_preprocess(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Megatron's: rows in the order of their experts, and their probabilities."""
        rows, probs = super().dispatch_preprocess(*args, **kwargs)
        # Kept until the next micro-batch, for their type. With their graph they would keep what a recomputed layer
        # started from, and its gradient.
        self.probs = self.probs.detach()
        return rows, probs

    def token_dispatch(self, hidden_states: Tensor, probs: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and their probabilities to the ranks of their experts."""
        rows, probs = super().token_dispatch(hidden_states, probs)
        rows, probs = self._exchange("dispatch", [rows, probs], self.input_splits, self.output_splits)
        return rows, probs

    def dispatch_postprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's: rows by local expert, how many each has, their probabilities."""
        with self._in_order():
            return super().dispatch_postprocess(*args, **kwargs)

    def combine_preprocess(self, *args: Any, **kwargs: Any) -> Any:
        """Megatron's: rows in the order they came."""
        with self._in_order():
            return super().combine_preprocess(*args, **kwargs)

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """Rows that all come from this rank lie sorted by expert: there is nothing to sort, and nothing to copy."""
        experts: int = self.num_local_experts
        if self.exchange_group.size() * self.tp_size == 1:
            self.num_local_experts = 1
        try:
            yield
        finally:
            self.num_local_experts = experts

    def token_combine(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Rows back to where they came from."""
        rows = super().token_combine(hidden_states, *args, **kwargs)
        return self._exchange("combine", [rows], self.output_splits, self.input_splits)[0]

    def _exchange(self, name: str, tensors: list[Tensor], send: Any, receive: Any) -> list[Tensor]:
        if self.exchange_group.size() == 1:
            run_posted()
            return tensors
        exchange = all_to_all(self.exchange_group, send, receive, name)
        return exchange_rows(exchange, tensors, self.overlap.overlap_exchange)


class OverlappedMoELayer(MoELayer):
    """`MoELayer` with `OverlappedDispatcher`; a shared expert is posted work as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._dispatchers: list[Any] = [None, None]
        super().__init__(*args, **kwargs)
        dispatcher = self._dispatchers[0]
        if isinstance(dispatcher, MoEAlltoAllTokenDispatcher):
            groups = kwargs["pg_collection"]
            dispatcher = OverlappedDispatcher(
                self.num_local_experts, self.local_expert_indices, config=self.config, pg_collection=groups
            )
            dispatcher.counts_on_host = getattr(self.experts, "counts_on_host", True)
        # A dispatcher remembers a micro-batch between its phases, so each half has one.
        self._dispatchers = [dispatcher, copy.copy(dispatcher)]

    @property
    def token_dispatcher(self) -> Any:
        """The dispatcher of the half that is running."""
        return self._dispatchers[micro_batch_half()]

    @token_dispatcher.setter
    def token_dispatcher(self, dispatcher: Any) -> None:
        self._dispatchers[0] = dispatcher

    def route(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> Any:
        """Megatron's; the dispatcher hears of padding, which has no routes."""
        if isinstance(self.token_dispatcher, OverlappedDispatcher):
            fewer = padding_mask is not None or self.config.moe_expert_capacity_factor is not None
            self.token_dispatcher.allow_fewer_routes(fewer)
        return super().route(hidden_states, padding_mask)

    def shared_experts_compute(self, hidden_states: Tensor) -> Any:
        """The shared expert's output, once somebody has time for it."""
        compute: Callable[[Tensor], Tensor] = super().shared_experts_compute
        return later(lambda: compute(hidden_states)) if self.use_shared_expert else None

    def postprocess(self, output: Tensor, shared_expert_output: Any) -> Tensor:
        """Megatron's, with the shared expert's output at hand."""
        if isinstance(shared_expert_output, Later):
            shared_expert_output = shared_expert_output.result()
        return super().postprocess(output, shared_expert_output)
