"""The `torch` backend: our experts in `OverlappedMoELayer`, with its router, dispatchers and exchange."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from altup_moe.moe.grouped import choose, grouped_mlp
from altup_moe.moe.megatron_backend import OverlappedMoELayer


class StackedWeights(nn.Module):
    """This rank's experts as two matrices: fc1 [E_local * 2f, d] (an expert's gate rows, then its up rows), fc2
    [E_local * d, f]. Two dimensions and whole rows: `parallel.names` tells whose they are, as for any matrix.

    f is this rank's share of moe_ffn_hidden_size under expert-tensor parallelism; the dispatcher gathers rows before,
    and adds up the outputs of the ranks that share an expert after.
    """

    def __init__(self, num_local_experts: int, config: Any, *args: Any, pg_collection: Any, **kwargs: Any) -> None:
        super().__init__()
        self.num_local_experts, self.tensor_group = num_local_experts, pg_collection.expt_tp
        self.activation, self.compiled = config.activation, config.compiled
        hidden, ffn = config.hidden_size, config.moe_ffn_hidden_size // self.tensor_group.size()
        device = torch.cuda.current_device()

        def weight(*shape: int) -> nn.Parameter:
            # Set by global name after building, like all weights.
            return nn.Parameter(torch.empty(*shape, dtype=config.params_dtype, device=device))

        self.fc1 = weight(num_local_experts * 2 * ffn, hidden)
        self.fc2 = weight(num_local_experts * hidden, ffn)


class StackedExperts(StackedWeights):
    """Every expert on its own rows (`moe.grouped`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.how = choose(self.fc1.device, self.fc1.dtype, self.fc1.shape[1], self.fc2.shape[1])

    @property
    def counts_on_host(self) -> bool:
        """Whether the number of rows of each expert is wanted on the host: by the loop, which makes slices of it."""
        return self.how == "loop"

    def forward(self, rows_RD: Tensor, tokens_per_expert: Tensor, probs_R: Tensor) -> tuple[Tensor, None]:
        """Rows sorted by expert, how many each has [E_local], and their probabilities -> (outputs [R, D], no bias)."""
        counts = tokens_per_expert.tolist() if self.counts_on_host else tokens_per_expert
        how, act, compiled = self.how, self.activation, self.compiled
        return grouped_mlp(rows_RD, probs_R, self.fc1, self.fc2, counts, how, act, compiled), None

    def backward_dw(self) -> None:
        """Nothing is put off: weight gradients are computed in the backward pass."""


class StackedMoELayer(OverlappedMoELayer):
    """The overlapped layer with `StackedExperts`."""

    def __init__(self, config: Any, submodules: Any, *args: Any, **kwargs: Any) -> None:
        submodules = copy.copy(submodules)
        submodules.experts = StackedExperts
        super().__init__(config, submodules, *args, **kwargs)
