"""The `tutel` backend: Tutel's fused dispatch and combine around batched experts, with our router and our exchange.

    our router -> routes | Tutel: fast_encode -> exchange | batched experts | exchange -> Tutel: fast_decode

Tutel's `moe_layer` is not used: it routes by a softmax of its own and has an exchange that blocks. Its
encode and decode (one kernel each, with a backward of its own) are public and take any routes. Weight gradients are
those of the summed loss, as everywhere in Megatron; a whole Tutel layer hands them out expert-parallel size times as
large as a mean over all ranks expects.

Every expert's buffer has as many slots as the fullest one needs, and all of them are multiplied: without a capacity,
skewed routing costs what its fullest expert does, times the number of experts.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from tutel.moe import fast_decode, fast_encode

from altup_moe.moe.activations import ACTIVATIONS
from altup_moe.moe.megatron_backend import OverlappedMoELayer
from altup_moe.moe.slots import Routes, positions_first, routes_of, slots_of
from altup_moe.moe.torch_backend import StackedWeights
from altup_moe.overlap.deferred_work import Later
from altup_moe.overlap.expert_exchange import exchange_slots, with_sharing_ranks


class BatchedExperts(StackedWeights):
    """All experts of a rank in one batched product."""

    def forward(self, rows_GECD: Tensor) -> Tensor:
        """Slots by sending rank and local expert [G, E_local, C, D] -> their outputs, the same shape."""
        return with_sharing_ranks(self.tensor_group, rows_GECD, self._multiply)

    def _multiply(self, rows_GECD: Tensor) -> Tensor:
        senders, experts, slots, hidden = rows_GECD.shape
        fc1_EGD, fc2_EDF = (w.view(experts, -1, w.shape[1]) for w in (self.fc1, self.fc2))
        rows_END = rows_GECD.transpose(0, 1).reshape(experts, senders * slots, hidden)
        gate, up = torch.bmm(rows_END, fc1_EGD.transpose(1, 2)).chunk(2, dim=-1)
        out_END = torch.bmm(ACTIVATIONS[self.activation](gate) * up, fc2_EDF.transpose(1, 2))
        return out_END.view(experts, senders, slots, hidden).transpose(0, 1).contiguous()


class TutelMoELayer(OverlappedMoELayer):
    """The overlapped layer with Tutel's dispatch and combine."""

    def __init__(self, config: Any, submodules: Any, *args: Any, pg_collection: Any, **kwargs: Any) -> None:
        submodules = copy.copy(submodules)
        submodules.experts = BatchedExperts
        super().__init__(config, submodules, *args, pg_collection=pg_collection, **kwargs)
        self._groups = pg_collection

    def forward(
        self, hidden_states: Tensor, *args: Any, padding_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """[S, B, D] -> ([S, B, D], no bias). ``padding_mask``: bool [B, S], True on padding."""
        shared = self.shared_experts_compute(hidden_states)
        probs_TE, map_TE = self.route(hidden_states, positions_first(padding_mask))
        rows_TD = hidden_states.reshape(-1, hidden_states.shape[-1])
        slots = slots_of(map_TE, self.config, self._groups, self.training)
        routes = tutel_routes(routes_of(probs_TE, map_TE, self.config.moe_router_topk), map_TE.shape[1], int(slots))
        rows_ECD = self._exchange("dispatch", fast_encode(rows_TD.contiguous(), routes))
        senders = self._groups.ep.size()
        output_GECD = self.experts(rows_ECD.view(senders, -1, *rows_ECD.shape[1:]))
        output_ECD = self._exchange("combine", output_GECD.view(rows_ECD.shape))
        output = fast_decode(output_ECD.contiguous(), routes).view(hidden_states.shape)
        if isinstance(shared, Later):
            output = output + shared.result()
        return output, None

    def _exchange(self, name: str, slots_ECD: Tensor) -> Tensor:
        return exchange_slots(self._groups.ep, slots_ECD, name, self.config.overlap_exchange)


def tutel_routes(routes: Routes, experts: int, slots: int) -> tuple[Any, ...]:
    """Routes as Tutel's encode and decode want them: K vectors each of experts, slots and gates, and the sizes.

    A route with a negative expert is none. There is a slot at least, since a buffer of none has no shape.
    """
    experts_K, slots_K, gates_K = ([part.contiguous() for part in each.unbind(0)] for each in routes)
    numbers = [[part.to(torch.int32) for part in each] for each in (experts_K, slots_K)]
    return experts, *numbers, gates_K, max(1, slots), None
