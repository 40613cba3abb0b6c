"""What a rank holds of the global tensors: its weights, and Megatron's optimizer state under the parameters' names.

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

from altup_moe.checkpoint.boxes import box_shape, flat_boxes, volume
from altup_moe.checkpoint.tensors import STORED
from altup_moe.checkpoint.write import Form, Part
from altup_moe.parallel.names import Box, NamedTensor, Piece

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Held:
    """A box of a stored tensor in this rank's memory. ``tensor`` is a view of it, shaped as the box."""

    part: Part
    form: Form
    tensor: Tensor


@dataclass(frozen=True)
class _Shard:
    """What an inner optimizer updates of a parameter: elements [start, stop), flattened."""

    optimizer: torch.optim.Optimizer
    updated: Tensor
    start: int
    stop: int


def held_tensors(named: Iterable[NamedTensor], optimizer: Any | None) -> list[Held]:
    """Every box of weights and optimizer state on this rank.

    Args:
        optimizer: Megatron's; None for weights alone. Its state is made (as zeros) where it does not exist yet.
    """
    entries = list(named)
    shards = _shards(entries, optimizer) if optimizer is not None else {}
    held: list[Held] = []
    for entry in entries:
        for piece in entry.pieces:
            weight = entry.tensor.detach()
            held.append(_held("weights", piece, piece.box, weight[piece.local_index]))
            shard = shards.get(id(entry.tensor))
            if shard is None:
                continue
            state = _state(shard)
            flat = {name: state[name].view(-1) for name in MOMENTS}
            if shard.updated.dtype != weight.dtype:
                flat["main"] = shard.updated.detach().view(-1)
            for box, first, last in _boxes_of(entry, piece, shard):
                held += [
                    _held(kind, piece, box, values[first:last].view(box_shape(box))) for kind, values in flat.items()
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
    """Make Adam go on counting from `steps`, for every parameter that `held_tensors` has made state for."""
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


def _held(kind: str, piece: Piece, box: Box, tensor: Tensor) -> Held:
    return Held(Part(f"{kind}/{piece.name}", box), Form(piece.shape, STORED[tensor.dtype]), tensor)


def _state(shard: _Shard) -> dict[str, Tensor]:
    state = shard.optimizer.state[shard.updated]
    for name in MOMENTS:
        if name not in state:
            state[name] = torch.zeros_like(shard.updated, memory_format=torch.preserve_format)
    if isinstance(shard.optimizer, torch.optim.AdamW):
        state.setdefault("step", torch.tensor(0.0))
    return state


def _shards(entries: list[NamedTensor], optimizer: Any) -> dict[int, _Shard]:
    """By parameter (its id): where its optimizer state is."""
    found: dict[int, _Shard] = {}
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if inner is not None and hasattr(part, "model_param_gbuf_map"):
            found |= _ranges(part)
        elif inner is not None:
            updated = {id(p) for group in inner.param_groups for p in group["params"]}
            for entry in entries:
                main = getattr(entry.tensor, "main_param", None)
                target = entry.tensor if main is None else main
                if id(target) in updated:
                    found[id(entry.tensor)] = _Shard(inner, target, 0, entry.tensor.numel())
    return found


def _ranges(part: Any) -> dict[int, _Shard]:
    """Megatron's distributed optimizer: which range of each parameter this rank updates."""
    pairs = (
        (part.model_fp32_groups, part.shard_fp32_groups),
        (part.model_float16_groups, part.shard_fp32_from_float16_groups),
    )
    found = {}
    for models, shards in pairs:
        for group, held in zip(models, shards, strict=True):
            for parameter, updated in zip(group, held, strict=True):
                buffer, dtype, bucket = part.model_param_gbuf_map[parameter]
                place = part.gbuf_ranges[buffer][dtype][bucket]["param_map"][parameter]["param"]
                found[id(parameter)] = _Shard(part.optimizer, updated, place.start, place.end)
    return found


def _boxes_of(entry: NamedTensor, piece: Piece, shard: _Shard) -> Iterator[tuple[Box, int, int]]:
    """(global box, its elements' range in the shard) of what a shard holds of a piece.

    A piece is whole rows of its parameter, so its elements follow each other there.
    """
    row = math.prod(entry.tensor.shape[1:])
    begin = piece.local[0][0] * row if piece.local else 0
    first, last = max(shard.start, begin), min(shard.stop, begin + volume(piece.box))
    at = first - shard.start
    for box in flat_boxes(piece.box, first - begin, last - begin):
        yield box, at, at + volume(box)
        at += volume(box)
