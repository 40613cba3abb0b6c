"""What a rank holds of the global tensors: its weights, and the optimizer's state under the parameters' names.

An optimizer keeps fp32 copies ("main") of half-precision weights and two moments of each weight; the distributed one
keeps a range of each parameter's elements on each data-parallel rank. Either way the result is boxes of global tensors,
so what one layout has saved another can read. (By index, as Megatron's own state has it, a chained optimizer's state
saved at one expert-parallel size does not load at another.)
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
    """A box of a stored tensor in this rank's memory. ``tensor`` is a view of it, shaped as the box."""

    part: NamedSlice
    form: TensorSpec
    tensor: Tensor


def local_tensors(named: Iterable[NamedTensor], optimizer: Any | None) -> list[LocalTensor]:
    """Every box of weights and optimizer state on this rank.

    Args:
        optimizer: Megatron's or DeepSpeed's; None for weights alone. Its state is made (as zeros) where it does not
            exist yet.
    """
    entries = list(named)
    found = optimizer_shards((entry.tensor for entry in entries), optimizer) if optimizer is not None else {}
    held: list[LocalTensor] = []
    told: set[str] = set()
    for entry in entries:
        for piece in entry.pieces:
            weight, cut = entry.tensor.detach(), zero3_weight_shard(entry.tensor)
            if cut is None:
                held.append(_held("weights", piece, piece.box, weight[piece.local_index]))
            else:
                values, start, stop = cut
                for box, first, last in _boxes_of(entry, piece, start, stop):
                    held.append(_held("weights", piece, box, values[first:last].view(slice_shape(box))))
            share = found.get(id(entry.tensor))
            if share is None:
                continue
            globally = getattr(share.optimizer, "tensors", None)
            if globally is None:
                state = _state(share)
                flat = {name: share.of(state[name]) for name in ADAM_STATES}
            else:  # Adafactor: moments of global tensors, each told of once
                flat = {}
                moments = {} if piece.name in told else globally[piece.name].moments
                told.add(piece.name)
                for kind, value in moments.items():
                    box = full_slice(tuple(value.shape))
                    held.append(
                        LocalTensor(
                            NamedSlice(f"{kind}/{piece.name}", box), TensorSpec(tuple(value.shape), "F32"), value
                        )
                    )
            if share.tensor.dtype != weight.dtype:
                flat["main"] = share.of(share.tensor.detach())
            for box, first, last in _boxes_of(entry, piece, share.start, share.stop):
                held += [
                    _held(kind, piece, box, values[first:last].view(slice_shape(box))) for kind, values in flat.items()
                ]
    return held


def optimizer_steps(optimizer: Any) -> int:
    """Updates that Adam has counted; the same for every parameter."""
    for inner in _inner(optimizer):
        for state in inner.state.values():
            if "step" in state:
                return int(state["step"])
        for group in inner.param_groups:
            if "step" in group:  # apex and Transformer Engine count by group
                return int(group["step"])
    return 0


def set_optimizer_steps(optimizer: Any, steps: int) -> None:
    """Make Adam go on counting from `steps`, for every parameter that `local_tensors` has made state for."""
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


def _held(kind: str, piece: Piece, box: TensorSlice, tensor: Tensor) -> LocalTensor:
    return LocalTensor(
        NamedSlice(f"{kind}/{piece.name}", box), TensorSpec(piece.shape, DTYPE_NAMES[tensor.dtype]), tensor
    )


def _state(share: OptimizerShard) -> dict[str, Tensor]:
    state = share.optimizer.state[share.tensor]
    for name in ADAM_STATES:
        if name not in state:
            state[name] = torch.zeros_like(share.tensor, memory_format=torch.preserve_format)
    if isinstance(share.optimizer, torch.optim.AdamW):
        state.setdefault("step", torch.tensor(0.0))
    return state


def _boxes_of(entry: NamedTensor, piece: Piece, start: int, stop: int) -> Iterator[tuple[TensorSlice, int, int]]:
    """(global box, its range in them) of what a piece has of its parameter's elements [start, stop).

    A piece is whole rows of its parameter, so its elements follow each other there.
    """
    row = math.prod(getattr(entry.tensor, "ds_shape", entry.tensor.shape)[1:])
    begin = piece.local[0][0] * row if piece.local else 0
    first, last = max(start, begin), min(stop, begin + num_elements(piece.box))
    at = first - start
    for box in flat_range_slices(piece.box, first - begin, last - begin):
        yield box, at, at + num_elements(box)
        at += num_elements(box)
