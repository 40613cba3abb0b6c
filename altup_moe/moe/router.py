"""Megatron's top-k choice, with losses, capacity and counts that do not depend on the layout or on padding.

Megatron applies its capacity to the tokens that lie on one rank, so tensor or context parallelism would change which
tokens are dropped. Here the rule of `moe.capacity` is applied to the whole micro-batch: the routing probabilities
are gathered over the ranks that share it, and each rank keeps its part of one decision. The routers' losses are ours
too (`moe.router_losses`): Megatron's take it that ranks have equally many tokens, which padding makes untrue.

Padding is not routed: it takes no expert's place, counts in no statistic, and its rows are sent nowhere.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, compute_routing_scores_for_aux_loss
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from altup_moe.device.on_device import on_device
from altup_moe.moe.capacity import expert_capacity, keep_within_capacity
from altup_moe.moe.records import RecordsRouting, RoutingRecord
from altup_moe.moe.router_losses import balance_loss, z_loss
from altup_moe.overlap.two_batch import compute_together
from altup_moe.timeline.spans import span

Part = tuple[Tensor, Tensor | None]
"""Logits [S, B, E] of a micro-batch or of half of it, and its padding [S, B] (True on padding) if it has any."""


class CapacityRouter(RecordsRouting, TopKRouter):
    """`TopKRouter` for the choice of experts; losses, dropping and counting are those of the whole micro-batch."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.capacity_factor = config.moe_expert_capacity_factor
        self.z_coeff, self.balance_coeff = config.moe_z_loss_coeff or 0.0, config.moe_aux_loss_coeff
        chooser = copy.copy(config)
        chooser.moe_expert_capacity_factor = chooser.moe_z_loss_coeff = None
        chooser.moe_router_load_balancing_type, chooser.moe_aux_loss_coeff = "none", 0.0
        super().__init__(chooser, *args, **kwargs)
        # Each expert's share of the routes of the step before (no step yet: all alike).
        equal = torch.full((config.num_moe_experts,), 1 / config.num_moe_experts, device=self.weight.device)
        self.register_buffer("expert_load", equal if config.balance_over_step else None)
        self.clear_record()

    def clear_record(self) -> None:
        """Forget what was recorded."""
        self.record = RoutingRecord.zero(self.config.num_moe_experts, self.weight.device)

    @torch.no_grad()
    def step_taken(self, counts_E: Sequence[float], bias_update_rate: float) -> None:
        """Biases and loads follow the routes of an optimizer step (arXiv 2408.15664, Algorithm 1)."""
        if self.expert_bias is None and self.expert_load is None:
            return
        counts = on_device(counts_E, self.weight.device, torch.float32)
        if self.expert_bias is not None:
            self.expert_bias += bias_update_rate * (counts.mean() - counts).sign().to(self.expert_bias.dtype)
        if self.expert_load is not None and any(counts_E):
            self.expert_load.copy_(counts / counts.sum())

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Probabilities and map [tokens, E] of logits [S, B, E]; in training, routes over capacity are cleared.

        Halves of a micro-batch are routed together: its losses and its capacity are those of all its tokens.

        Args:
            padding_mask: bool [S, B], True on padding, whose rows of the result are zero; None is all tokens.
        """

        def together(parts: list[Part]) -> list[tuple[Tensor, Tensor]]:
            if len(parts) > 1 and torch.is_grad_enabled():
                for part, _ in parts:
                    # Half of a [S, B, E] gradient is no contiguous tensor, and Megatron's gating wants one.
                    part.register_hook(lambda grad: grad.contiguous())
            whole, padding = parts[0] if len(parts) == 1 else _joined(parts)
            with span("route"):
                results = self._routing_of_all(whole, padding)
            if len(parts) == 1:
                return [results]
            # Megatron flattens [S, B, E] to [S*B, E]; halves lie along B.
            halves = [t.view(*whole.shape[:2], -1).chunk(len(parts), dim=1) for t in results]
            return [(p.flatten(0, 1), m.flatten(0, 1)) for p, m in zip(*halves, strict=True)]

        return compute_together((logits, padding_mask), together)

    def _routing_of_all(self, logits_SBE: Tensor, padding_SB: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_TE = logits_SBE.reshape(-1, logits_SBE.shape[-1])
        real_T = None if padding_SB is None else ~padding_SB.reshape(-1)
        if real_T is not None:
            logits_TE = logits_TE[real_T]
        # Under recomputation the first pass runs without gradients, and the second one counts.
        counting = self.training and torch.is_grad_enabled()
        if counting:
            logits_TE = self._with_losses(logits_TE)
        probs, routing_map = super().routing(logits_TE[:, None])
        if counting:
            self.record.counts += routing_map.detach().sum(0)
        if real_T is not None:
            probs, routing_map = _placed(probs, real_T), _placed(routing_map, real_T)
        # Outside training nothing is dropped: a capacity would let later tokens decide an earlier one's logits.
        if self.capacity_factor is None or not self.training:
            return probs, routing_map
        keep = self._keep(probs.detach(), routing_map, real_T)
        if counting:
            self.record.dropped += (routing_map & ~keep).sum()
        return probs * keep, routing_map & keep

    def _with_losses(self, logits_TE: Tensor) -> Tensor:
        """The logits, whose gradient has that of the routers' losses in it (Megatron's `MoEAuxLossAutoScaler`)."""
        if not (self.z_coeff or self.balance_coeff):
            return logits_TE
        choice_TE, scores_TE = compute_routing_scores_for_aux_loss(logits_TE, self.topk, self.score_function)
        # How many tokens, then routes of each expert.
        totals = torch.cat([torch.ones_like(choice_TE[:, :1]), choice_TE], dim=1).sum(0).float()
        # It sums in place: nothing of this rank's alone is asked for again.
        totals = reduce_from_tensor_model_parallel_region(totals, group=self.tp_cp_group)
        here, counts_E = totals[0], totals[1:]
        # Micro-batches have unequal numbers of tokens where there is padding; each token has the same weight.
        mean = here if self.tokens_of_micro_batch is None else self.tokens_of_micro_batch
        shares_E = counts_E / counts_E.sum().clamp(min=1) if self.expert_load is None else self.expert_load
        if self.z_coeff:
            loss = self.z_coeff * z_loss(logits_TE, mean)
            self.record.z += loss.detach()
            logits_TE = MoEAuxLossAutoScaler.apply(logits_TE, loss)
        if self.balance_coeff:
            loss = self.balance_coeff * balance_loss(scores_TE, shares_E, here if self.expert_load is None else mean)
            self.record.aux += loss.detach()
            logits_TE = MoEAuxLossAutoScaler.apply(logits_TE, loss)
        return logits_TE

    def _keep(self, probs_TE: Tensor, routing_map_TE: Tensor, real_T: Tensor | None) -> Tensor:
        group, size = self.tp_cp_group, self.tp_cp_group.size()
        if size > 1:
            probs_TE, routing_map_TE = _gather(probs_TE, group), _gather(routing_map_TE, group)
            real_T = None if real_T is None else _gather(real_T, group)
        tokens, experts = probs_TE.shape
        tokens = tokens if real_T is None else int(real_T.sum())
        capacity = expert_capacity(tokens, self.topk, experts, self.capacity_factor)
        keep = keep_within_capacity(probs_TE, routing_map_TE, capacity)
        return keep.chunk(size)[group.rank()] if size > 1 else keep


def _joined(parts: list[Part]) -> Part:
    """Halves of a micro-batch as one."""
    paddings = [padding for _, padding in parts if padding is not None]
    return torch.cat([logits for logits, _ in parts], dim=1), torch.cat(paddings, dim=1) if paddings else None


def _placed(rows: Tensor, real_T: Tensor) -> Tensor:
    """Rows of tokens [T, E] at their places among all positions; padding's are zero."""
    whole = rows.new_zeros(real_T.shape[0], rows.shape[1])
    return whole.index_put((real_T.nonzero().squeeze(1),), rows)


def _gather(local: Tensor, group: Any) -> Tensor:
    """[T/n, ...] -> [T, ...], in the order of the group's ranks."""
    as_float = local.to(torch.float32).contiguous()
    full = as_float.new_empty((local.shape[0] * group.size(), *local.shape[1:]))
    dist.all_gather_into_tensor(full, as_float, group=group)
    return full.to(local.dtype)
