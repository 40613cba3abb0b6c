"""Cross-entropy over a vocabulary that tensor ranks share, in three compiled passes over the logits.

Megatron's own makes a chain of operations in fp32. Here two passes read the logits and a third writes their gradient,
into the logits' own memory and type, so that there is one tensor of their size; sums are fp32.

Shape legend: any leading dimensions N, V vocabulary of this tensor rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.device.regions import region


def compiled_token_losses(logits_NV: Tensor, labels_N: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Loss of every token [N], fp32, in nats.

    Args:
        logits_NV: this tensor rank's columns, the rank-th V of the vocabulary. The backward pass overwrites them, as
            Megatron's forward pass does: nothing else may read them, and it runs once.
        labels_N: ids in the whole vocabulary.
        group: the tensor ranks.
    """
    return _CompiledLosses.apply(logits_NV, labels_N, group)


def _largest(logits_NV: Tensor) -> Tensor:
    return logits_NV.amax(-1).float()


def _sum_exp(logits_NV: Tensor, largest_N: Tensor) -> Tensor:
    return (logits_NV.float() - largest_N[..., None]).exp().sum(-1)


def _softmax_times(logits_NV: Tensor, log_sum_N: Tensor, grad_N: Tensor) -> None:
    logits_NV.copy_((logits_NV.float() - log_sum_N[..., None]).exp() * grad_N[..., None])


class _CompiledLosses(torch.autograd.Function):
    """log(sum(exp(logits))) - logits[label]."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, labels_N: Tensor, group: dist.ProcessGroup) -> Tensor:
        size, vocabulary = group.size(), logits_NV.shape[-1]
        label_N = labels_N - group.rank() * vocabulary
        elsewhere_N = (label_N < 0) | (label_N >= vocabulary)
        label_N1 = label_N.masked_fill(elsewhere_N, 0)[..., None]
        picked_N = logits_NV.gather(-1, label_N1).squeeze(-1).float().masked_fill(elsewhere_N, 0)
        largest_N = region(True, _largest, logits_NV)
        if size > 1:
            dist.all_reduce(largest_N, dist.ReduceOp.MAX, group)
        sums_2N = torch.stack([region(True, _sum_exp, logits_NV, largest_N), picked_N])
        if size > 1:
            dist.all_reduce(sums_2N, dist.ReduceOp.SUM, group)
        log_sum_N, picked_N = largest_N + sums_2N[0].log(), sums_2N[1]
        ctx.save_for_backward(logits_NV, log_sum_N, picked_N, label_N1, elsewhere_N)
        return log_sum_N - picked_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        logits_NV, log_sum_N, picked_N, label_N1, elsewhere_N = ctx.saved_tensors
        grad_N = grads[0]
        d_NV = logits_NV.detach()
        region(True, _softmax_times, d_NV, log_sum_N, grad_N)
        # softmax - 1 at the label, rounded once; a rank without the label writes back what is there.
        at_label_N = ((picked_N - log_sum_N).exp() - 1) * grad_N
        there_N = d_NV.gather(-1, label_N1).squeeze(-1)
        d_NV.scatter_(-1, label_N1, torch.where(elsewhere_N, there_N, at_label_N.to(d_NV.dtype))[..., None])
        return d_NV, None, None
