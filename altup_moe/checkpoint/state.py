"""This rank's slices of the global tensors: its weights, and the optimizer state under the parameters' global names.

An optimizer keeps fp32 copies ("main") of half-precision weights and state tensors (Adam: two moments) of each weight.
The distributed optimizer keeps a range of each parameter's elements on each data-parallel rank. Both are stored as
slices of global tensors, so any layout can read what another saved. Megatron's own state is stored by index: what a
chained optimizer saved at one expert-parallel size does not load at another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altup_moe.checkpoint.optimizer_shards import OptimizerShard, optimizer_shards, zero3_weight_shard
from altup_moe.checkpoint.slices import flat_range_slices, full_slice, num_elements, slice_shape
from altup_moe.checkpoint.tensors import DTYPE_NAMES
from altup_moe.checkpoint.write import NamedSlice, TensorSpec
from altup_moe.parallel.parameter_mapping import NamedTensor, Piece, TensorSlice

ADAM_STATES = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LocalTensor:
    """A slice of a stored tensor in this rank's memory.

    ``spec``: shape and dtype of the whole stored tensor. ``tensor``: a view of the memory, with the slice's shape.
    """

    part: NamedSlice
    spec: TensorSpec
    tensor: Tensor


def local_tensors(named: Iterable[NamedTensor], optimizer: Any | None) -> list[LocalTensor]:
    """Every slice of weights and optimizer state on this rank.

    Args:
        named: the parameters and buffers of this rank's model chunks.
        optimizer: Megatron's or DeepSpeed's; None for weights alone. State that does not exist yet is made, as zeros.
    """
    entries = list(named)
    shards = optimizer_shards((entry.tensor for entry in entries), optimizer) if optimizer is not None else {}
    found: list[LocalTensor] = []
    factored: set[str] = set()
    for entry in entries:
        shard = shards.get(id(entry.tensor))
        for piece in entry.pieces:
            found += _weights(entry, piece)
            if shard is None:
                continue
            adafactor = getattr(shard.optimizer, "tensors", None)
            flat: dict[str, Tensor] = {}
            if adafactor is None:
                state = _state(shard)
                flat = {kind: shard.elements_of(state[kind]) for kind in ADAM_STATES}
            elif piece.name not in factored:  # several pieces of a global tensor share its state
                factored.add(piece.name)
                found += [_whole(kind, piece, value) for kind, value in adafactor[piece.name].moments.items()]
            if shard.tensor.dtype != entry.tensor.dtype:
                flat["main"] = shard.elements_of(shard.tensor.detach())
            for tensor_slice, first, last in _slices_of_range(entry, piece, shard.start, shard.stop):
                found += [_local(kind, piece, tensor_slice, values[first:last]) for kind, values in flat.items()]
    return found


def _weights(entry: NamedTensor, piece: Piece) -> Iterator[LocalTensor]:
    """What this rank holds of a piece's weights: all of it, or under ZeRO 3 the elements of its partition."""
    partition = zero3_weight_shard(entry.tensor)
    if partition is None:
        yield _local("weights", piece, piece.global_slice, entry.tensor.detach()[piece.local_index])
        return
    values, start, stop = partition
    for tensor_slice, first, last in _slices_of_range(entry, piece, start, stop):
        yield _local("weights", piece, tensor_slice, values[first:last])


def optimizer_steps(optimizer: Any) -> int:
    """Number of updates that the optimizer has counted, for Adam's bias correction; the same for every parameter."""
    for inner in _inner(optimizer):
        for state in inner.state.values():
            if "step" in state:
                return int(state["step"])
        for group in inner.param_groups:
            if "step" in group:  # apex and Transformer Engine count by group
                return int(group["step"])
    return 0


def set_optimizer_steps(optimizer: Any, steps: int) -> None:
    """Set the number of counted updates of every parameter that has state (`local_tensors` makes it)."""
    for inner in _inner(optimizer):
        if isinstance(inner, torch.optim.AdamW):
            for state in inner.state.values():
                # A scalar on the CPU: where torch's AdamW wants it.
                state["step"] = torch.tensor(float(steps))
        else:
            for group in inner.param_groups:
                group["step"] = steps


def _inner(optimizer: Any) -> list[torch.optim.Optimizer]:
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in chained if getattr(part, "optimizer", None) is not None]


def _local(kind: str, piece: Piece, tensor_slice: TensorSlice, values: Tensor) -> LocalTensor:
    spec = TensorSpec(piece.shape, DTYPE_NAMES[values.dtype])
    return LocalTensor(NamedSlice(f"{kind}/{piece.name}", tensor_slice), spec, values.view(slice_shape(tensor_slice)))


def _whole(kind: str, piece: Piece, value: Tensor) -> LocalTensor:
    """Adafactor's state of a global tensor, which each rank holds whole; a factor has a shape of its own."""
    shape = tuple(value.shape)
    return LocalTensor(NamedSlice(f"{kind}/{piece.name}", full_slice(shape)), TensorSpec(shape, "F32"), value)


def _state(shard: OptimizerShard) -> dict[str, Tensor]:
    state = shard.optimizer.state[shard.tensor]
    for name in ADAM_STATES:
        if name not in state:
            state[name] = torch.zeros_like(shard.tensor, memory_format=torch.preserve_format)
    if isinstance(shard.optimizer, torch.optim.AdamW):
        state.setdefault("step", torch.tensor(0.0))
    return state


def _slices_of_range(entry: NamedTensor, piece: Piece, start: int, stop: int) -> Iterator[tuple[TensorSlice, int, int]]:
    """What a piece contains of elements [start, stop) of its flattened local parameter.

    A piece is made of whole rows of the parameter, so its elements are contiguous in it.

    Yields:
        (slice of the global tensor, first, last): its elements are [first, last) counted from `start`.
    """
    row = math.prod(getattr(entry.tensor, "ds_shape", entry.tensor.shape)[1:])
    begin = piece.local_slice[0][0] * row if piece.local_slice else 0
    first, last = max(start, begin), min(stop, begin + num_elements(piece.global_slice))
    at = first - start
    for tensor_slice in flat_range_slices(piece.global_slice, first - begin, last - begin):
        yield tensor_slice, at, at + num_elements(tensor_slice)
        at += num_elements(tensor_slice)
