"""What a training step needs of whoever reduces gradients and updates weights, and Megatron's way of it.

Forward and backward run through Megatron's schedules under every engine, and with them the scaling of the loss, the
routers' losses and recomputation. An engine differs in what happens to a gradient once it is there.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist

from altup_moe.config import RunConfig
from altup_moe.model.build import build_model, named_tensors
from altup_moe.parallel.deepspeed_groups import use_deepspeed
from altup_moe.parallel.topology import Topology
from altup_moe.train.adafactor import use_adafactor
from altup_moe.train.optim import build_optimizer


class Engine(Protocol):
    """A model that can be trained. All ranks call its methods together."""

    chunks: list[Any]
    """What Megatron's schedules run: modules whose gradients the engine catches, each with the bare one in `module`."""
    optimizer: Any
    """What `build_scheduler` sets rates in (``param_groups``) and `local_tensors` finds optimizer state in."""

    def zero_grad(self) -> None:
        """Forget the gradients of the step before, also of one that was not taken."""

    def gradients_are_finite(self) -> bool:
        """Whether no rank holds an infinite or undefined gradient after the reduction; the same on every rank."""

    def step(self) -> float:
        """Clip by the global norm, update, and return the norm before clipping."""

    def weights_loaded(self, with_optimizer: bool) -> None:
        """Weights were set from outside; `with_optimizer`: and so was the optimizer's state, fp32 copies included."""


class MegatronEngine:
    """Megatron's data parallelism and optimizer (with parallel.distributed_optimizer, its ZeRO-1)."""

    def __init__(self, config: RunConfig, topology: Topology) -> None:
        self.chunks: list[Any] = list(build_model(config, topology))
        self.optimizer = build_optimizer(self.chunks, config)
        if config.optim.optimizer == "adafactor":
            use_adafactor(self.optimizer, named_tensors(self.chunks, config, topology))
        self._device = topology.device

    def zero_grad(self) -> None:
        """Also the buffers that hold the gradients of all parameters."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def gradients_are_finite(self) -> bool:
        """Looks at sums of whole buffers."""
        finite = torch.ones((), device=self._device)
        for chunk in self.chunks:
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers):
                finite *= torch.isfinite(buffer.grad_data.sum()).float()
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return bool(finite)

    def step(self) -> float:
        """Megatron's optimizer clips."""
        _, grad_norm, _ = self.optimizer.step()
        return float(grad_norm)

    def weights_loaded(self, with_optimizer: bool) -> None:
        """The fp32 copies of half-precision weights follow the weights, where they were not loaded themselves."""
        if not with_optimizer:
            self.optimizer.reload_model_params()


def build_engine(config: RunConfig, topology: Topology) -> Engine:
    """The model of a checked configuration, with the engine that trains it (train.engine)."""
    if config.train.engine == "deepspeed":
        # Before anything of its is imported.
        use_deepspeed(topology)
        from altup_moe.train.deepspeed_engine import ZeroEngine

        return ZeroEngine(config, topology)
    return MegatronEngine(config, topology)
