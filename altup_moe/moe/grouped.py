"""Gated MLPs of many experts over rows sorted by expert: stacked weights, one pass, gradients written by hand.

Shape legend: R rows (routes) sorted by expert, E experts of this rank, D hidden width, F inner width.

    a = x W1_e^T  (gate, then up)      h = silu(gate) * up * p      y = h W2_e^T

A loop over experts, or `torch.nn.functional.grouped_mm`. Both write every expert's rows into one tensor, and weight
gradients into one tensor of the stacked shape, so that nothing is split, concatenated or added up afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

How = Literal["loop", "grouped_mm"]
"""Which code multiplies."""


def choose(device: torch.device, dtype: torch.dtype, hidden: int, ffn: int) -> How:
    """The faster way that works.

    On a CPU `grouped_mm` is a loop too. On a GPU one launch replaces two an expert; it takes bf16 (others go through
    a loop that copies sizes off the GPU), and rows of a multiple of 16 bytes.
    """
    fits = dtype is torch.bfloat16 and all(n * dtype.itemsize % 16 == 0 for n in (hidden, ffn))
    return "grouped_mm" if device.type == "cuda" and fits else "loop"


class _Loop:
    """Products expert by expert. An expert without rows costs nothing: BLAS is not called for it."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts

    def _rows(self) -> Iterator[tuple[int, slice]]:
        start = 0
        for expert, count in enumerate(self.counts):
            if count:
                yield expert, slice(start, start + count)
            start += count

    def forward(self, x_RI: Tensor, weight_EOI: Tensor) -> Tensor:
        """x W_e^T: [R, I], [E, O, I] -> [R, O]."""
        out = x_RI.new_empty(x_RI.shape[0], weight_EOI.shape[1])
        for expert, rows in self._rows():
            torch.mm(x_RI[rows], weight_EOI[expert].t(), out=out[rows])
        return out

    def backward(self, grad_RO: Tensor, weight_EOI: Tensor) -> Tensor:
        """The gradient of x: [R, O], [E, O, I] -> [R, I]."""
        out = grad_RO.new_empty(grad_RO.shape[0], weight_EOI.shape[2])
        for expert, rows in self._rows():
            torch.mm(grad_RO[rows], weight_EOI[expert], out=out[rows])
        return out

    def weight(self, grad_RO: Tensor, x_RI: Tensor) -> Tensor:
        """The gradient of W: [R, O], [R, I] -> [E, O, I], zero for an expert without rows."""
        out = grad_RO.new_empty(len(self.counts), grad_RO.shape[1], x_RI.shape[1])
        for expert, count in enumerate(self.counts):
            if not count:
                out[expert].zero_()
        for expert, rows in self._rows():
            torch.mm(grad_RO[rows].t(), x_RI[rows], out=out[expert])
        return out


class _GroupedMM:
    """The same through `torch.nn.functional.grouped_mm`: int32 ends of groups, no fp64, contiguous operands."""

    def __init__(self, counts: Sequence[int], device: torch.device) -> None:
        self.ends = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)

    def forward(self, x_RI: Tensor, weight_EOI: Tensor) -> Tensor:
        """As `_Loop.forward`."""
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=self.ends)

    def backward(self, grad_RO: Tensor, weight_EOI: Tensor) -> Tensor:
        """As `_Loop.backward`."""
        return F.grouped_mm(grad_RO, weight_EOI, offs=self.ends)

    def weight(self, grad_RO: Tensor, x_RI: Tensor) -> Tensor:
        """As `_Loop.weight`. Groups without rows are zero."""
        return F.grouped_mm(grad_RO.t(), x_RI, offs=self.ends)


class _GroupedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, probs_R: Tensor, fc1_EFD: Tensor, fc2_EDF: Tensor, counts: Sequence[int], how: How
    ) -> Tensor:
        mm = _Loop(counts) if how == "loop" else _GroupedMM(counts, x_RD.device)
        a_RF2 = mm.forward(x_RD, fc1_EFD)
        gate, up = a_RF2.chunk(2, dim=1)
        h = F.silu(gate).mul_(up).mul_(probs_R.to(x_RD.dtype)[:, None])
        ctx.mm = mm
        ctx.save_for_backward(x_RD, probs_R, fc1_EFD, fc2_EDF, a_RF2)
        return mm.forward(h, fc2_EDF)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_RD, probs_R, fc1_EFD, fc2_EDF, a_RF2 = ctx.saved_tensors
        mm, grad = ctx.mm, grads[0].contiguous()
        p = probs_R.to(x_RD.dtype)[:, None]
        gate, up = a_RF2.chunk(2, dim=1)
        s = F.silu(gate)
        su = s * up
        dh = mm.backward(grad, fc2_EDF)
        dprobs = (dh * su).sum(1, dtype=torch.float32)
        dfc2 = mm.weight(grad, su.mul_(p))
        dh.mul_(p)
        da = torch.empty_like(a_RF2)
        dgate, dup = da.chunk(2, dim=1)
        torch.mul(dh, s, out=dup)
        dh.mul_(up)
        torch.ops.aten.silu_backward.grad_input(dh, gate, grad_input=dgate)
        return mm.backward(da, fc1_EFD), dprobs.to(probs_R.dtype), mm.weight(da, x_RD), dfc2, None, None


def grouped_mlp(
    x_RD: Tensor, probs_R: Tensor, fc1_EFD: Tensor, fc2_EDF: Tensor, counts: Sequence[int], how: How
) -> Tensor:
    """The outputs [R, D] of every expert on its rows.

    Args:
        x_RD: rows sorted by expert.
        probs_R: each row's combine probability, in a type of its own (the router's).
        fc1_EFD: [E, 2F, D], an expert's gate rows and then its up rows.
        fc2_EDF: [E, D, F].
        counts: rows of each expert, in order; they add up to R.
        how: see `choose`.
    """
    return _GroupedMLP.apply(x_RD, probs_R, fc1_EFD, fc2_EDF, counts, how)
