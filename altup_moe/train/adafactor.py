"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), as T5 was trained: factored second moments, steps in
proportion to a parameter's size, updates clipped by their root mean square, no first moment.

What it computes of a tensor depends on which rows and columns stand together. Megatron fuses projections (query, key
and value; gate and up), so it works on the global tensors inside the parameters: every layout that leaves those whole
on a rank (data, pipeline, expert and context parallelism) gives one curve, and a checkpoint names its state by them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altup_moe.checkpoint.optimizer_state_shapes import FACTORED_STATES, state_shapes
from altup_moe.parallel.parameter_mapping import NamedTensor, Piece

DECAY = 0.8
"""The second moment's decay at step t is 1 - t^-0.8 (section 7.2)."""
SQUARE_FLOOR = 1e-30
"""Added to squared gradients (epsilon_1)."""
SIZE_FLOOR = 1e-3
"""A parameter counts as at least this large (epsilon_2)."""
CLIP = 1.0
"""Largest root mean square of an update before its rate (d, section 6)."""


@dataclass(frozen=True)
class GlobalTensor:
    """A tensor by its global name, and the pieces of parameters that hold it. ``moments``: by kind, at least fp32."""

    shape: tuple[int, ...]
    parts: list[tuple[Tensor, Piece]]
    moments: dict[str, Tensor]

    def gathered(self, gradients: bool) -> Tensor:
        """Its values, or gradients, in fp32 at least."""
        found = [(p.grad if gradients else p.detach(), piece) for p, piece in self.parts]
        first = self.parts[0][0]
        out = torch.empty(self.shape, dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
        for values, piece in found:
            assert values is not None
            out[piece.index] = values[piece.local_index]
        return out

    def add(self, update: Tensor, factor: float) -> None:
        """Add a multiple of an update to the parameters."""
        for parameter, piece in self.parts:
            parameter[piece.local_index].add_(update[piece.index].to(parameter.dtype), alpha=factor)


class Adafactor(torch.optim.Optimizer):
    """Updates global tensors. Rates are those of the parameters' groups, times the tensors' sizes.

    Args:
        groups: those of the optimizer it replaces; they stay the same objects, so a scheduler's rates arrive.
        named: every parameter of the rank's chunks, with its pieces.
    """

    def __init__(self, groups: list[dict[str, Any]], named: Iterable[NamedTensor]) -> None:
        super().__init__(groups, {"step": 0})
        updated = {id(parameter): group for group in self.param_groups for parameter in group["params"]}
        self.tensors: dict[str, GlobalTensor] = {}
        self._names: dict[int, list[str]] = defaultdict(list)
        for entry in named:
            # Half-precision weights are updated through their fp32 copies.
            main = getattr(entry.tensor, "main_param", None)
            target = entry.tensor if main is None else main
            if id(target) not in updated:
                continue
            for piece in entry.pieces:
                if piece.name not in self.tensors:
                    shapes = state_shapes("adafactor", piece.shape).items()
                    dtype = torch.promote_types(target.dtype, torch.float32)
                    moments = {k: torch.zeros(shape, dtype=dtype, device=target.device) for k, shape in shapes}
                    self.tensors[piece.name] = GlobalTensor(piece.shape, [], moments)
                    self._names[id(updated[id(target)])].append(piece.name)
                self.tensors[piece.name].parts.append((target, piece))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of everything that has a gradient."""
        sizes = self._sizes()
        for group in self.param_groups:
            group["step"] += 1
            for name in self._names[id(group)]:
                tensor = self.tensors[name]
                if name not in sizes:
                    continue
                update = direction(tensor.gathered(gradients=True), tensor.moments, group["step"])
                size = max(SIZE_FLOOR, sizes[name])
                if group["weight_decay"]:
                    tensor.add(tensor.gathered(gradients=False), -group["lr"] * group["weight_decay"])
                tensor.add(update, -group["lr"] * size)

    def _sizes(self) -> dict[str, float]:
        """Root mean square of every tensor that has a gradient; read back together."""
        held = {name: tensor for name, tensor in self.tensors.items() if tensor.parts[0][0].grad is not None}
        if not held:
            return {}
        found = [root_mean_square(tensor.gathered(gradients=False)).double() for tensor in held.values()]
        return dict(zip(held, torch.stack(found).tolist(), strict=True))


def direction(gradient: Tensor, moments: dict[str, Tensor], step: int) -> Tensor:
    """The clipped update of a tensor before its rate; `moments` move on. Algorithms 4 and 5, with means for sums."""
    decay = 1.0 - step**-DECAY
    square = gradient.square() + SQUARE_FLOOR
    if FACTORED_STATES[0] in moments:
        row, column = (moments[kind] for kind in FACTORED_STATES)
        row.lerp_(square.mean(-1), 1.0 - decay)
        column.lerp_(square.mean(-2), 1.0 - decay)
        # The quotient of a row without gradients may underflow to zero, and zero times rsqrt(0) is no number.
        share = (row / row.mean(-1, keepdim=True)).clamp(min=torch.finfo(row.dtype).tiny)
        update = gradient * share.rsqrt().unsqueeze(-1) * column.rsqrt().unsqueeze(-2)
    else:
        moments["exp_avg_sq"].lerp_(square, 1.0 - decay)
        update = gradient * moments["exp_avg_sq"].rsqrt()
    return update / (root_mean_square(update) / CLIP).clamp(min=1.0)


def root_mean_square(values: Tensor) -> Tensor:
    """A scalar."""
    return values.square().mean().sqrt()


def use_adafactor(optimizer: Any, named: Iterable[NamedTensor]) -> None:
    """Put Adafactor in the place of the optimizers inside Megatron's, before the first step."""
    entries = list(named)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if getattr(part, "optimizer", None) is not None:
            part.optimizer = Adafactor(part.optimizer.param_groups, entries)
