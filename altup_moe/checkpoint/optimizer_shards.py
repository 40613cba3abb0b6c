"""Which elements of each parameter the optimizer of this rank updates, and where it keeps them.

Megatron's optimizers hold one tensor for each parameter: the whole parameter, or this data-parallel rank's range of it.
DeepSpeed's ZeRO 1 and 2 concatenate the parameters of a group, cut the result into one partition a rank, and hold that
partition. ZeRO 3 cuts each parameter (and its weights) into one partition a rank and concatenates the partitions of a
group. This module imports none of them: it tells optimizers apart by their attributes.
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
    """The elements [start, stop) of a flattened parameter that an inner optimizer updates.

    ``tensor``: the tensor that the optimizer updates and keeps state for; the shard begins at its element ``offset``.
    """

    optimizer: torch.optim.Optimizer
    tensor: Tensor
    start: int
    stop: int
    offset: int = 0

    def elements_of(self, values: Tensor) -> Tensor:
        """The shard's elements, flat, of a tensor with the layout of ``tensor`` (such as its optimizer state)."""
        return values.view(-1)[self.offset : self.offset + self.stop - self.start]


def optimizer_shards(parameters: Iterable[Tensor], optimizer: Any) -> dict[int, OptimizerShard]:
    """``id(parameter)`` -> the shard of it that this rank updates; parameters without one are left out."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return _zero12_shards(optimizer)
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        return _zero3_shards(optimizer)
    found: dict[int, OptimizerShard] = {}
    known = list(parameters)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if inner is not None and hasattr(part, "model_param_gbuf_map"):
            found |= _distributed_shards(part)
        elif inner is not None:
            targets = {id(p) for group in inner.param_groups for p in group["params"]}
            for parameter in known:
                main = getattr(parameter, "main_param", None)
                target = parameter if main is None else main
                if id(target) in targets:
                    found[id(parameter)] = OptimizerShard(inner, target, 0, parameter.numel())
    return found


def _distributed_shards(part: Any) -> dict[int, OptimizerShard]:
    """Megatron's distributed optimizer: this rank updates a range of each parameter."""
    pairs = (
        (part.model_fp32_groups, part.shard_fp32_groups),
        (part.model_float16_groups, part.shard_fp32_from_float16_groups),
    )
    found = {}
    for models, shards in pairs:
        for group, tensors in zip(models, shards, strict=True):
            for parameter, tensor in zip(group, tensors, strict=True):
                buffer, dtype, bucket = part.model_param_gbuf_map[parameter]
                ranges = part.gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
                found[id(parameter)] = OptimizerShard(part.optimizer, tensor, ranges.start, ranges.end)
    return found


def zero3_weight_shard(parameter: Tensor) -> tuple[Tensor, int, int] | None:
    """(flat view of elements [start, stop), start, stop): what ZeRO 3 keeps of a parameter on this rank.

    None for a parameter that the rank holds whole.
    """
    kept: Tensor | None = getattr(parameter, "ds_tensor", None)
    if kept is None:
        return None
    start, stop = _partition(parameter, parameter.ds_process_group)  # type: ignore[attr-defined]
    return kept.detach().view(-1)[: stop - start], start, stop


def _partition(parameter: Any, group: Any) -> tuple[int, int]:
    """Elements [start, stop) of this rank. Partitions are equal; the last ones are shorter or empty."""
    size = parameter.partition_numel()
    start = min(size * dist.get_rank(group), parameter.ds_numel)
    return start, min(start + size, parameter.ds_numel)


def _zero3_shards(optimizer: Any) -> dict[int, OptimizerShard]:
    """DeepSpeed's ZeRO 3."""
    found = {}
    for index, parameters in enumerate(optimizer.fp16_groups):
        offset = 0
        for parameter in parameters:
            start, stop = _partition(parameter, optimizer.sub_group_process_groups[index])
            if start < stop:
                flat = optimizer.fp32_partitioned_groups_flat[index]
                found[id(parameter)] = OptimizerShard(optimizer.optimizer, flat, start, stop, offset)
            offset += parameter.partition_numel()
    return found


def _zero12_shards(optimizer: Any) -> dict[int, OptimizerShard]:
    """DeepSpeed's ZeRO 1 and 2: this rank updates one partition of each group's concatenated parameters."""
    found = {}
    for index, parameters in enumerate(optimizer.round_robin_bit16_groups):
        size = int(optimizer.partition_size[index])
        begin = size * dist.get_rank(optimizer.real_dp_process_group[index])
        positions = optimizer.round_robin_bit16_offsets[index]
        for parameter, position in zip(parameters, positions, strict=True):
            start = max(begin - position, 0)
            stop = min(begin + size - position, parameter.numel())
            if start < stop:
                offset = max(position - begin, 0)
                flat = optimizer.single_partition_of_fp32_groups[index]
                found[id(parameter)] = OptimizerShard(optimizer.optimizer, flat, start, stop, offset)
    return found
