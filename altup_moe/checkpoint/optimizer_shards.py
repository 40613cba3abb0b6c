"""Where an optimizer keeps what it updates of a parameter: all of it, or this data-parallel rank's range.

Megatron's optimizers hold a tensor for each parameter. DeepSpeed's ZeRO 1 and 2 lay the parameters of a group one after
the other, cut that line into one part a rank, and hold the part. ZeRO 3 cuts every parameter, its weights too, and lays
the parts of a group one after the other. Their modules are not imported here: they are told apart by the attributes
that are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class OptimizerShard:
    """What an inner optimizer updates of a parameter: its elements [start, stop), flattened.

    ``tensor``: what the optimizer updates and has moments of; they stand in it from element ``at``.
    """

    optimizer: torch.optim.Optimizer
    tensor: Tensor
    start: int
    stop: int
    at: int = 0

    def of(self, values: Tensor) -> Tensor:
        """The parameter's elements of something that is laid out as `tensor` is, flat."""
        return values.view(-1)[self.at : self.at + self.stop - self.start]


def optimizer_shards(parameters: Iterable[Tensor], optimizer: Any) -> dict[int, OptimizerShard]:
    """By parameter (its id): where its optimizer state on this rank is."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return _line_parts(optimizer)
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _parameter_parts(optimizer)
    found: dict[int, OptimizerShard] = {}
    known = list(parameters)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if inner is not None and hasattr(part, "model_param_gbuf_map"):
            found |= _ranges(part)
        elif inner is not None:
            targets = {id(p) for group in inner.param_groups for p in group["params"]}
            for parameter in known:
                main = getattr(parameter, "main_param", None)
                target = parameter if main is None else main
                if id(target) in targets:
                    found[id(parameter)] = OptimizerShard(inner, target, 0, parameter.numel())
    return found


def _ranges(part: Any) -> dict[int, OptimizerShard]:
    """Megatron's distributed optimizer: which range of each parameter this rank updates."""
    pairs = (
        (part.model_fp32_groups, part.shard_fp32_groups),
        (part.model_float16_groups, part.shard_fp32_from_float16_groups),
    )
    found = {}
    for models, shards in pairs:
        for group, held in zip(models, shards, strict=True):
            for parameter, shard in zip(group, held, strict=True):
                buffer, dtype, bucket = part.model_param_gbuf_map[parameter]
                place = part.gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
                found[id(parameter)] = OptimizerShard(part.optimizer, shard, place.start, place.end)
    return found


def zero3_weight_shard(parameter: Tensor) -> tuple[Tensor, int, int] | None:
    """What ZeRO 3 leaves a rank of a parameter: elements [start, stop) and a flat view of them; None if it is whole."""
    kept: Tensor | None = getattr(parameter, "ds_tensor", None)
    if kept is None:
        return None
    start, stop = _cut(parameter, parameter.ds_process_group)  # type: ignore[attr-defined]
    return kept.detach().view(-1)[: stop - start], start, stop


def _cut(parameter: Any, group: Any) -> tuple[int, int]:
    """Equal parts, the last ones shorter or empty."""
    size = parameter.partition_numel()
    start = min(size * dist.get_rank(group), parameter.ds_numel)
    return start, min(start + size, parameter.ds_numel)


def _parameter_parts(optimizer: Any) -> dict[int, OptimizerShard]:
    """DeepSpeed's ZeRO 3."""
    found = {}
    for index, parameters in enumerate(optimizer.fp16_groups):
        at = 0
        for parameter in parameters:
            start, stop = _cut(parameter, optimizer.sub_group_process_groups[index])
            if start < stop:
                held = optimizer.fp32_partitioned_groups_flat[index]
                found[id(parameter)] = OptimizerShard(optimizer.optimizer, held, start, stop, at)
            at += parameter.partition_numel()
    return found


def _line_parts(optimizer: Any) -> dict[int, OptimizerShard]:
    """DeepSpeed's ZeRO 1 and 2: the part of every group's line of parameters that this rank updates."""
    found = {}
    for index, parameters in enumerate(optimizer.round_robin_bit16_groups):
        size = int(optimizer.partition_size[index])
        begin = size * dist.get_rank(optimizer.real_dp_process_group[index])
        offsets = optimizer.round_robin_bit16_offsets[index]
        for parameter, offset in zip(parameters, offsets, strict=True):
            start = max(begin - offset, 0)
            stop = min(begin + size - offset, parameter.numel())
            if start < stop:
                at = max(offset - begin, 0)
                held = optimizer.single_partition_of_fp32_groups[index]
                found[id(parameter)] = OptimizerShard(optimizer.optimizer, held, start, stop, at)
    return found
