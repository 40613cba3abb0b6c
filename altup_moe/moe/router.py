"""Megatron's top-k router with the layout-independent capacity rule, and a record of what it did.

Megatron applies its capacity to the tokens that lie on one rank, so tensor or context parallelism would change which
tokens are dropped. Here the rule of `moe.capacity` is applied to the whole micro-batch: the routing probabilities
are gathered over the ranks that share it, and each rank keeps its part of one decision.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from altup_moe.moe.capacity import expert_capacity, keep_within_capacity
from altup_moe.moe.records import RecordsRouting, RoutingRecord
from altup_moe.overlap.two_batch import compute_together
from altup_moe.timeline.spans import span


class CapacityRouter(RecordsRouting, TopKRouter):
    """`TopKRouter` whose dropping does not depend on the layout. Everything else is Megatron's."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        self.capacity_factor = config.moe_expert_capacity_factor
        dropless = copy.copy(config)
        dropless.moe_expert_capacity_factor = None
        super().__init__(dropless, *args, **kwargs)
        self.clear_record()

    def clear_record(self) -> None:
        """Forget what was recorded."""
        self.record = RoutingRecord.zero(self.config.num_moe_experts, self.weight.device)

    def routing(self, logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Probabilities and map [tokens, E] of logits [S, B, E]; in training, routes over capacity are cleared.

        Halves of a micro-batch are routed together: its losses and its capacity are those of all its tokens.
        """

        def together(parts: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
            if len(parts) > 1 and torch.is_grad_enabled():
                for part in parts:
                    # Half of a [S, B, E] gradient is no contiguous tensor, and Megatron's gating wants one.
                    part.register_hook(lambda grad: grad.contiguous())
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            with span("route"):
                results = self._routing_of_all(whole, *args, **kwargs)
            if len(parts) == 1:
                return [results]
            # Megatron flattens [S, B, E] to [S*B, E]; halves lie along B.
            halves = [t.view(*whole.shape[:2], -1).chunk(len(parts), dim=1) for t in results]
            return [(p.flatten(0, 1), m.flatten(0, 1)) for p, m in zip(*halves, strict=True)]

        return compute_together(logits, together)

    def _routing_of_all(self, logits: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        probs, routing_map = super().routing(logits, *args, **kwargs)
        # Under recomputation the first pass runs without gradients, and the second one counts.
        counting = self.training and torch.is_grad_enabled()
        if counting:
            self.record.counts += routing_map.detach().sum(0)
        # Outside training nothing is dropped: a capacity would let later tokens decide an earlier one's logits.
        if self.capacity_factor is None or not self.training:
            return probs, routing_map
        keep = self._keep(probs.detach(), routing_map)
        if counting:
            self.record.dropped += (routing_map & ~keep).sum()
        return probs * keep, routing_map & keep

    def _keep(self, probs_TE: Tensor, routing_map_TE: Tensor) -> Tensor:
        group, size = self.tp_cp_group, self.tp_cp_group.size()
        if size > 1:
            probs_TE, routing_map_TE = _gather(probs_TE, group), _gather(routing_map_TE, group)
        tokens, experts = probs_TE.shape
        capacity = expert_capacity(tokens, self.topk, experts, self.capacity_factor)
        keep = keep_within_capacity(probs_TE, routing_map_TE, capacity)
        return keep.chunk(size)[group.rank()] if size > 1 else keep

    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, aux_loss_coeff: float, aux_loss: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Megatron's, and the loss is recorded."""
        self.record.aux += aux_loss.detach()
        return super().attach_and_log_load_balancing_loss(activation, aux_loss_coeff, aux_loss, *args, **kwargs)

    def apply_z_loss(self, logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Megatron's, and the loss is recorded."""
        coeff = self.config.moe_z_loss_coeff
        if coeff is not None and self.training and torch.is_grad_enabled():
            z = torch.logsumexp(logits.detach().float(), dim=-1).square().mean()
            self.record.z += z * coeff / self.tp_cp_group.size()
        return super().apply_z_loss(logits, *args, **kwargs)


def _gather(local: Tensor, group: Any) -> Tensor:
    """[T/n, E] -> [T, E], in the order of the group's ranks."""
    as_float = local.to(torch.float32).contiguous()
    full = as_float.new_empty((local.shape[0] * group.size(), *local.shape[1:]))
    dist.all_gather_into_tensor(full, as_float, group=group)
    return full.to(local.dtype)
