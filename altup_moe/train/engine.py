"""What a training step needs of whoever reduces gradients and updates weights, and Megatron's way of it.

Forward and backward run through Megatron's schedules under every engine, and with them the scaling of the loss, the
routers' losses and recomputation. An engine differs in what happens to a gradient once it is there.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core.optimizer import optimizer as megatron_optimizer
from torch import Tensor

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

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the reduced gradients, before clipping; infinite or undefined where one of them is, or
        where it overflows. A scalar on the device, not waited for. Once a step, after the backward pass."""

    def step(self, norm: float) -> None:
        """Clip by the norm that `gradient_norm` has found, read by now, and update."""

    def weights_loaded(self, with_optimizer: bool) -> None:
        """Weights were set from outside; `with_optimizer`: and so was the optimizer's state, fp32 copies included."""


class MegatronEngine:
    """Megatron's data parallelism and optimizer (with parallel.distributed_optimizer, its ZeRO-1)."""

    def __init__(self, config: RunConfig, topology: Topology) -> None:
        self.chunks: list[Any] = list(build_model(config, topology))
        self.optimizer = build_optimizer(self.chunks, config)
        if config.optim.optimizer == "adafactor":
            use_adafactor(self.optimizer, named_tensors(self.chunks, config, topology))
        self._clip = config.optim.clip_grad

    def zero_grad(self) -> None:
        """Also the buffers that hold the gradients of all parameters."""
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def gradient_norm(self) -> Tensor:
        """That of Megatron's `ChainedOptimizer.get_grad_norm`, which reads back every optimizer's, and without
        Transformer Engine and apex every parameter's."""
        self.optimizer.prepare_grads()
        parts = self.optimizer.chained_optimizers
        if self.optimizer.grads_states_parallel_group_is_shared():
            return _norm([grad for part in parts for grad in gradients(part)], parts[0])
        norms = [_norm(gradients(part), part) for part in parts]
        return norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()

    @torch.no_grad()
    def step(self, norm: float) -> None:
        """What Megatron's `ChainedOptimizer.step` does once it has the norm."""
        for part in self.optimizer.chained_optimizers:
            parameters = part.get_parameters()
            if self._clip and parameters:
                # By the module: there a CPU answers for CUDA (parallel.cpu).
                megatron_optimizer.clip_grad_by_total_norm_fp32(parameters, self._clip, norm)
        self.optimizer.step_with_ready_grads()

    def weights_loaded(self, with_optimizer: bool) -> None:
        """The fp32 copies of half-precision weights follow the weights, where they were not loaded themselves."""
        if not with_optimizer:
            self.optimizer.reload_model_params()


def gradients(part: Any) -> list[Tensor]:
    """Those of one of Megatron's optimizers, as its norm takes them."""
    # 0.16.1 has one name for it, 0.19.2 another.
    found = getattr(part, "get_grads_for_grad_norm", None) or part.get_main_grads_for_grad_norm
    return list(found())


def _norm(grads: list[Tensor], part: Any) -> Tensor:
    """The norm of gradients, fp64 of squares that are added in fp32 over the ranks of an optimizer. Collective."""
    if grads:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))).float()
    else:
        norm = torch.zeros((), device=torch.cuda.current_device())
    square = norm**2
    dist.all_reduce(square, group=part.get_grad_stats_parallel_group())
    return square.double().sqrt()


def build_engine(config: RunConfig, topology: Topology) -> Engine:
    """The model of a checked configuration, with the engine that trains it (train.engine)."""
    if config.train.engine == "deepspeed":
        # Before anything of its is imported.
        use_deepspeed(topology)
        from altup_moe.train.deepspeed_engine import ZeroEngine

        return ZeroEngine(config, topology)
    return MegatronEngine(config, topology)
