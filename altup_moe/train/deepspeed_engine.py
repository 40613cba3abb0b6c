"""DeepSpeed's ZeRO as the engine: it reduces, shards and updates; forward and backward stay Megatron's schedule's.

What is made equal to Megatron's engine here, and how:
- loss scaling: the schedule divides by tokens and micro-batches, so DeepSpeed counts one micro-batch a step, and is
  told which backward pass is the last;
- averaging: DeepSpeed adds experts' gradients over the expert data-parallel group and divides by the data-parallel
  size, as Megatron does, once it knows that there are experts, which it only believes of its own layer class;
- what tensor ranks hold whole and see different tokens with (norms, routers, coefficients): Megatron's own finalising
  runs on the parts of the averaged gradients that this rank holds;
- dtypes: DeepSpeed's bf16 mode would cast every parameter, coefficients too. It is left off: parameters are of the
  dtype that they were built in, gradients are averaged and added up in fp32, and ZeRO's copies are fp32.

Checkpoints are ours (`checkpoint.updated` finds the state); DeepSpeed's are neither written nor read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.utils import combine_grad_norm_groups
from megatron.core.distributed import DistributedDataParallelConfig, finalize_model_grads
from torch import Tensor, nn

from altup_moe.config import RunConfig
from altup_moe.model.build import bare_chunks
from altup_moe.parallel.deepspeed_groups import expert_group_name
from altup_moe.parallel.release import at_end
from altup_moe.parallel.topology import Topology
from altup_moe.train.optim import group_overrides, is_coefficient

BUCKET = 50_000_000
"""Elements that are reduced or gathered in one call, at most; smaller models have smaller buckets."""


class _Experts(MoE):
    """Tells DeepSpeed that the model has experts. It holds nothing and computes nothing."""

    def __init__(self, num_experts: int) -> None:
        nn.Module.__init__(self)
        self.num_experts = num_experts

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """The groups are there already."""


class _Model(nn.Module):
    """What DeepSpeed is given: the model chunk, and beside it the sign that says it has experts."""

    def __init__(self, chunk: nn.Module, num_experts: int) -> None:
        super().__init__()
        self.chunk = chunk
        if num_experts:
            self.experts = _Experts(num_experts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The chunk's."""
        return self.chunk(*args, **kwargs)


class ZeroChunk(nn.Module):
    """What Megatron's schedule runs: the bare chunk in `module`, called through DeepSpeed's engine."""

    def __init__(self, module: Any, engine: Any) -> None:
        super().__init__()
        self.module, self.config = module, module.config
        # By a function: as a submodule it would hold `module` once more, and every parameter would be found twice.
        self._call: Callable[..., Any] = engine.__call__
        # Megatron's finalising asks only whether it is FSDP.
        self.ddp_config = DistributedDataParallelConfig()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The chunk's output; DeepSpeed's hooks wait for its gradient."""
        return self._call(*args, **kwargs)

    def finish_grad_sync(self, *args: Any, **kwargs: Any) -> None:
        """Megatron asks for it before it finalises: the last backward pass has ended with the reduction."""


class ZeroEngine:
    """ZeRO over Megatron's groups, which `use_deepspeed` has given to it."""

    def __init__(self, config: RunConfig, topology: Topology) -> None:
        self._stage = config.parallel.zero_stage
        (chunk,) = bare_chunks(config, topology)
        for parameter in chunk.parameters():
            if not getattr(parameter, "allreduce", True):
                parameter.group_name = expert_group_name(topology)
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=_Model(chunk, config.moe.num_experts),
            optimizer=_adamw(chunk, config),
            mpu=deepspeed.utils.groups.mpu,
            config=_settings(config, chunk),
            dist_init_required=False,
        )
        # Takes its hooks off the parameters: they refer to it through C++, where no garbage is collected.
        at_end(self._engine.destroy)
        self.chunks: list[Any] = [ZeroChunk(chunk, self._engine)]
        chunk.config.grad_scale_func = None
        chunk.config.no_sync_func = self._accumulating
        chunk.config.finalize_model_grads_func = self._finalise

    @contextmanager
    def _accumulating(self) -> Iterator[None]:
        """Around every backward pass but the last of a step."""
        self._engine.set_gradient_accumulation_boundary(False)
        yield
        self._engine.set_gradient_accumulation_boundary(True)

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(parameter, this rank's part of its averaged gradient), in place."""
        zero = self.optimizer
        for index, parameters in enumerate(zero.fp16_groups if self._stage == 3 else zero.params_in_partition):
            parts = zero.averaged_gradients[index]
            yield from zip(parameters, parts, strict=False)  # the last part may be padding

    def _finalise(self, chunks: list[Any], *args: Any, **kwargs: Any) -> None:
        """Megatron's finalising (sums over tensor ranks, expert biases), on parts instead of whole gradients.

        Tensor ranks cut what they share at the same places, for what they do not share is of equal size.
        """
        parts = list(self._parts())
        for parameter, part in parts:
            parameter.main_grad = part  # type: ignore[attr-defined]
        finalize_model_grads(chunks, *args, **kwargs)
        for parameter, _ in parts:
            del parameter.main_grad  # type: ignore[attr-defined]

    def zero_grad(self) -> None:
        """Also the averaged parts of a step that was not taken."""
        self.optimizer.zero_grad()
        for kept in (self.optimizer.averaged_gradients, getattr(self.optimizer, "all_grad_tensors", {})):
            for index in kept:
                kept[index] = None

    def gradient_norm(self) -> Tensor:
        """DeepSpeed's own, over data-parallel and tensor ranks; what is infinite or undefined it calls inf."""
        zero, name = self.optimizer, "_get_norm_groups" if self._stage == 3 else "scaled_global_norm"
        found = getattr(type(zero), name)(zero)
        # `step` asks this object for it, and gets what was found.
        setattr(zero, name, lambda: found)
        norm = combine_grad_norm_groups(found) if self._stage == 3 else found
        return torch.as_tensor(norm, dtype=torch.float64, device=self._engine.device).reshape(())

    def step(self, norm: float) -> None:
        """DeepSpeed clips, by the norm that it remembers."""
        self._engine.step()

    def _copies(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(this rank's part of the weights, what the optimizer updates of it), by group."""
        zero = self.optimizer
        if self._stage == 3:
            yield from zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
            return
        for index, parts in enumerate(zero.parallel_partitioned_bit16_groups):
            rank = torch.distributed.get_rank(zero.real_dp_process_group[index])
            yield parts[rank], zero.single_partition_of_fp32_groups[index]

    @torch.no_grad()
    def weights_loaded(self, with_optimizer: bool) -> None:
        """ZeRO's fp32 copies follow the weights; only those of half-precision weights are loaded themselves."""
        for weights, copy in self._copies():
            if not with_optimizer or weights.dtype == copy.dtype:
                copy.copy_(weights)
        if self._stage == 3:
            # Only parts were loaded: what is kept whole is put together again.
            self.optimizer._partition_all_parameters()
            whole = self.optimizer.persistent_parameters
            whole[0].all_gather(whole)


def _adamw(chunk: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW over the same groups as under Megatron, the experts of each apart."""
    optim, stage = config.optim, config.parallel.zero_stage
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in chunk.named_parameters():
        kind, overrides = group_overrides(config, name, parameter)
        new = {"name": kind, "params": [], "default_config": not overrides, **overrides}
        groups.setdefault(kind, new)["params"].append(parameter)
    # DeepSpeed takes the first parameter's dtype for that of all. Of bf16 ones ZeRO-1 adds up micro-batches in fp32;
    # ZeRO-2 brings every gradient to that dtype before it is averaged, and coefficients' must stay fp32.
    ordered = sorted(groups.values(), key=lambda group: (group["params"][0].dtype is torch.float32) is (stage == 1))
    return torch.optim.AdamW(
        split_params_into_different_moe_groups_for_optimizer(ordered),
        lr=optim.learning_rate,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        weight_decay=optim.weight_decay,
    )


def _settings(config: RunConfig, chunk: nn.Module) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    whole = [p.numel() for name, p in chunk.named_parameters() if p.dim() == 1 or is_coefficient(name)]
    bucket = min(BUCKET, 2 * sum(parameter.numel() for parameter in chunk.parameters()))
    return {
        "train_micro_batch_size_per_gpu": config.train.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_grad,
        "steps_per_print": None,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
            # Norms and coefficients stay whole: layers read them outside the module that they belong to.
            "stage3_param_persistence_threshold": 1 + max(whole),
        },
    }
