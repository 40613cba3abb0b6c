"""The `deepspeed` backend: DeepSpeed's own MoE layer (dispatch, experts, combine), with our router and our exchange.

    our router -> decision | DeepSpeed: gate (Gate) -> encode -> exchange -> Experts -> exchange -> decode

DeepSpeed's gate is not used: it drops at random (`use_rts`) and samples second experts (`top2_2nd_expert_sampling`),
in evaluation too, and normalises and counts in its own way. Its `MOELayer.forward` runs as it is, except that two of
the names it looks up are ours: the exchange, so that work overlaps it, and the number of tensor-parallel ranks. Under
tensor parallelism it expects every rank to hold all tokens and drops the copies; under sequence parallelism, which we
always have there, each rank holds tokens of its own and nothing may be dropped.

No process group of DeepSpeed's is needed: the expert group is handed over. Every expert's buffer has as many
slots as the fullest one needs: without a capacity, skewed routing multiplies experts' work and the bytes sent.
"""

from __future__ import annotations

import copy
import os
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

# Without this, importing it prints on a CPU that there is no GPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from deepspeed.moe.experts import Experts
from deepspeed.moe.sharded_moe import MOELayer

from altup_moe.moe.activations import ACTIVATIONS
from altup_moe.moe.megatron_backend import OverlappedMoELayer
from altup_moe.moe.slots import positions_first, routes_of, slots_of
from altup_moe.overlap.deferred_work import Later
from altup_moe.overlap.expert_exchange import exchange_slots, with_sharing_ranks

Decision = tuple[Tensor, Tensor]
"""(probabilities, bool map) [tokens, E] of our router."""


class GatedExpert(nn.Module):
    """down(act(gate(x)) * up(x)), this rank's share of the inner width; named as in Megatron's experts."""

    def __init__(self, hidden: int, ffn: int, dtype: torch.dtype, activation: str = "silu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        # Set by global name after building, like all weights; drawing them here would move the random state.
        place = {"bias": False, "dtype": dtype, "device": torch.cuda.current_device()}
        self.linear_fc1 = nn.utils.skip_init(nn.Linear, hidden, 2 * ffn, **place)
        self.linear_fc2 = nn.utils.skip_init(nn.Linear, ffn, hidden, **place)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., D] -> [..., D], without the probability: DeepSpeed multiplies by it when it combines."""
        gate, up = self.linear_fc1(rows).chunk(2, dim=-1)
        return self.linear_fc2(self.activation(gate) * up)


class LocalExperts(Experts):
    """DeepSpeed's experts under the contract's name `local_experts`, also shared out over expert-tensor ranks."""

    def __init__(self, num_local_experts: int, config: Any, *args: Any, pg_collection: Any, **kwargs: Any) -> None:
        ffn = config.moe_ffn_hidden_size // pg_collection.expt_tp.size()
        expert = GatedExpert(config.hidden_size, ffn, config.params_dtype, config.activation)
        super().__init__(expert, num_local_experts, f"ep_size_{pg_collection.ep.size()}")
        self.local_experts = self._modules.pop("deepspeed_experts")
        self._tensor_group = pg_collection.expt_tp

    @property
    def deepspeed_experts(self) -> Any:
        """The name that DeepSpeed's forward asks for."""
        return self.local_experts

    def forward(self, rows_GECD: Tensor) -> Tensor:
        """Slots by sending rank and local expert -> their outputs."""
        return with_sharing_ranks(self._tensor_group, rows_GECD, super().forward)


class Gate(nn.Module):
    """In the place of DeepSpeed's gate: translates a decision that was made before."""

    def __init__(self, config: Any, groups: Any) -> None:
        super().__init__()
        self._config, self._groups = config, groups

    def _set_ep_group(self, group: Any) -> None:
        """DeepSpeed hands its gate the expert group."""

    def forward(self, rows_TD: Tensor, decision: Decision, sparse_routes: bool, use_tutel: bool) -> tuple[Any, ...]:
        """(auxiliary loss, C, E, experts, slots, gates [K, T], routes of each expert)."""
        probs_TE, map_TE = decision
        slots = slots_of(map_TE, self._config, self._groups, self.training)
        routes = routes_of(probs_TE, map_TE, self._config.moe_router_topk)
        # Our router has attached its losses already.
        no_loss = probs_TE.new_zeros(())
        return no_loss, slots, map_TE.shape[1], *routes, map_TE.sum(0)


class _Exchange:
    """In the place of DeepSpeed's `_AllToAll` during one call of its forward: to the experts, then back."""

    def __init__(self, overlap: bool) -> None:
        self._overlap, self._names = overlap, iter(("dispatch", "combine"))

    def apply(self, group: Any, slots_ECD: Tensor) -> Tensor:
        """As many experts' slots to every rank as it has experts."""
        return exchange_slots(group, slots_ECD, next(self._names), self._overlap)


def with_names(function: Any, **names: Any) -> Any:
    """The function, for which some of its module's names mean something else. Others go on as before.

    Raises ImportError if it does not look a name up: then this version of the library does something else.
    """
    unknown = names.keys() - set(function.__code__.co_names)
    if unknown or function.__closure__:
        raise ImportError(f"{function.__qualname__} does not look up {', '.join(sorted(unknown)) or 'globals alone'}")
    return FunctionType(function.__code__, {**function.__globals__, **names})


def _one_tensor_rank(mpu: Any) -> int:
    return 1


class DeepSpeedMoELayer(OverlappedMoELayer):
    """The overlapped layer around DeepSpeed's."""

    def __init__(self, config: Any, submodules: Any, *args: Any, pg_collection: Any, **kwargs: Any) -> None:
        submodules = copy.copy(submodules)
        submodules.experts = LocalExperts
        super().__init__(config, submodules, *args, pg_collection=pg_collection, **kwargs)
        gate, size = Gate(config, pg_collection), pg_collection.ep.size()
        moe = MOELayer(gate, self.experts, f"ep_size_{size}", size, self.num_local_experts)
        moe._set_ep_group(pg_collection.ep)
        self.gate = gate
        # In a tuple, so that the experts are not registered a second time.
        self._moe = (moe,)

    def forward(
        self, hidden_states: Tensor, *args: Any, padding_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """[S, B, D] -> ([S, B, D], no bias). ``padding_mask``: bool [B, S], True on padding."""
        shared = self.shared_experts_compute(hidden_states)
        decision = self.route(hidden_states, positions_first(padding_mask))
        # Each call has an exchange of its own, and so each half of a micro-batch has.
        run = with_names(
            MOELayer.forward,
            _AllToAll=_Exchange(self.config.overlap_exchange),
            bwc_tensor_model_parallel_world_size=_one_tensor_rank,
        )
        output = run(self._moe[0], hidden_states, decision)
        if isinstance(shared, Later):
            output = output + shared.result()
        return output, None
