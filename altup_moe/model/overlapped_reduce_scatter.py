"""The reduce-scatter that ends a branch under tensor parallelism, overlapped with deferred work.

Of a dense feed-forward, and of attention where it is a step of its own.
"""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel.layers import RowParallelLinear
from torch import Tensor

from altup_moe.overlap.collectives import ReduceScatter, start_collective, wait_for_collective
from altup_moe.overlap.deferred_work import run_posted


class OverlappedRowParallelLinear(RowParallelLinear):
    """`RowParallelLinear` under sequence parallelism whose reduction is started, then waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In Megatron this says that the caller does the reduction.
        self.explicit_expert_comm = self.sequence_parallel and self.tp_group.size() > 1

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """[S, B, ffn / ranks] -> [S / ranks, B, D], and the bias that is left to the caller."""
        output, bias = super().forward(input_)
        if not self.explicit_expert_comm:
            return output, bias
        started = start_collective(output, ReduceScatter(self.tp_group))
        if self.config.overlap_exchange:
            run_posted()
        return wait_for_collective(started), bias
