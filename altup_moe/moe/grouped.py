"""Gated MLPs of many experts over rows sorted by expert: stacked weights, gradients written by hand.

Shape legend: R rows (routes) sorted by expert, N rows of a block, E experts of this rank, D hidden and F inner width,
G = 2F.

    a = x W1_e^T  (gate, then up)      h = act(gate) * up * p      y = h W2_e^T

Two ways to multiply. `loop` goes through each expert's rows block by block, and what only a block needs lies in one
scratch buffer, so that it stays in the cache and touches no new pages; what comes out is written where it belongs.
`grouped_mm` is one call for all experts, and what stands between its products can be compiled regions
(`device.regions`); in the cache, one region is no faster than the chain that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.device.on_device import on_device
from altup_moe.device.regions import region
from altup_moe.moe.activations import ACTIVATIONS

How = Literal["loop", "grouped_mm"]
"""Which code multiplies."""

BLOCK = 512
"""Rows of a block at most: enough for BLAS, few enough for the cache."""


_aten = torch.ops.aten
_ACT: dict[str, Callable[..., Tensor]] = {
    "silu": _aten.silu.out,
    "gelu_new": partial(_aten.gelu.out, approximate="tanh"),
}
_ACT_BACKWARD: dict[str, Callable[..., Tensor]] = {
    "silu": _aten.silu_backward.grad_input,
    "gelu_new": partial(_aten.gelu_backward.grad_input, approximate="tanh"),
}
"""`moe.activations` and their derivatives, into given memory."""


def choose(device: torch.device, dtype: torch.dtype, hidden: int, ffn: int) -> How:
    """The faster way that works.

    On a CPU `grouped_mm` is a loop too, without the blocks: 0 to 3 % slower (`altup-moe bench experts`). On a GPU, not
    measured, one launch replaces two an expert; it takes bf16 (others go through a loop that copies sizes off the
    GPU), and rows of a multiple of 16 bytes.
    """
    fits = dtype is torch.bfloat16 and all(n * dtype.itemsize % 16 == 0 for n in (hidden, ffn))
    return "grouped_mm" if device.type == "cuda" and fits else "loop"


def grouped_mlp(
    x_RD: Tensor,
    probs_R: Tensor,
    fc1: Tensor,
    fc2: Tensor,
    counts: Sequence[int] | Tensor,
    how: How,
    activation: str = "silu",
    compiled: bool = False,
) -> Tensor:
    """The outputs [R, D] of every expert on its rows.

    Args:
        x_RD: rows sorted by expert.
        probs_R: each row's combine probability, in a type of its own (the router's).
        fc1: [E * 2F, D], an expert's gate rows and then its up rows, one expert after another.
        fc2: [E * D, F].
        counts: rows of each expert, in order; they add up to R. `grouped_mm` takes a tensor, on the device or not.
        how: see `choose`. activation: a name of `moe.activations`.
        compiled: `grouped_mm` alone: activations as compiled regions.
    """
    if how == "loop":
        return _Loop.apply(x_RD, probs_R, fc1, fc2, tuple(counts), activation)
    if not isinstance(counts, Tensor) or counts.device != x_RD.device:
        counts = on_device([int(count) for count in counts], x_RD.device, torch.int32)
    return _GroupedMM.apply(x_RD, probs_R, fc1, fc2, counts.cumsum(0, dtype=torch.int32), activation, compiled)


def _activate(act: str, a_NG: Tensor, p_N1: Tensor, h_NF: Tensor) -> Tensor:
    """Into h: act(gate) * up * p."""
    gate, up = a_NG.chunk(2, dim=1)
    return _ACT[act](gate, out=h_NF).mul_(up).mul_(p_N1)


def _activate_backward(
    act: str, a_NG: Tensor, p_N1: Tensor, dh_NF: Tensor, h_NF: Tensor, s_NF: Tensor, da_NG: Tensor, dp_N: Tensor
) -> None:
    """From the gradient of h (used up): h again, the gradients of a and of p. ``s`` is scratch."""
    gate, up = a_NG.chunk(2, dim=1)
    dgate, dup = da_NG.chunk(2, dim=1)
    _ACT[act](gate, out=s_NF)
    torch.mul(s_NF, up, out=h_NF)
    # The gate's half is still free: room for the products that are added up.
    torch.sum(torch.mul(dh_NF, h_NF, out=dgate), 1, dtype=dp_N.dtype, out=dp_N)
    h_NF.mul_(p_N1)
    dh_NF.mul_(p_N1)
    torch.mul(dh_NF, s_NF, out=dup)
    _ACT_BACKWARD[act](dh_NF.mul_(up), gate, grad_input=dgate)


def _gated(act: str, a_RG: Tensor, p_R1: Tensor) -> Tensor:
    """`_activate` as a function of tensors."""
    gate, up = a_RG.chunk(2, dim=1)
    return (ACTIVATIONS[act](gate) * up * p_R1).to(a_RG.dtype)


def _gated_backward(act: str, a_RG: Tensor, p_R1: Tensor, dh_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`_activate_backward` as a function of tensors: h, and the gradients of a and of p."""
    gate, up = a_RG.chunk(2, dim=1)
    s_RF = ACTIVATIONS[act](gate)
    h_RF, dp_R = s_RF * up, (dh_RF * s_RF * up).sum(1, dtype=p_R1.dtype)
    d_RF = dh_RF * p_R1
    if act == "gelu_new":
        dgate_RF = _aten.gelu_backward(d_RF * up, gate.to(d_RF.dtype), approximate="tanh")
    else:
        dgate_RF = _aten.silu_backward(d_RF * up, gate.to(d_RF.dtype))
    return (h_RF * p_R1).to(a_RG.dtype), torch.cat([dgate_RF, d_RF * s_RF], 1).to(a_RG.dtype), dp_R


def _any_rows(*tensors: Tensor) -> None:
    """The number of rows, which no step has twice, stays a variable of the compiled code."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)


class _Blocks:
    """The rows of each expert in blocks of about equal size. An expert without rows has none: BLAS never sees it."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts
        self.largest = max((-(-n // -(-n // BLOCK)) for n in counts if n), default=0)

    def __iter__(self) -> Iterator[tuple[int, slice, bool]]:
        """(expert, its rows, whether they are its first)."""
        begin = 0
        for expert, count in enumerate(self.counts):
            parts = -(-count // BLOCK)
            for part in range(parts):
                yield expert, slice(begin + count * part // parts, begin + count * (part + 1) // parts), part == 0
            begin += count


class _WeightGradient:
    """Where a stacked weight's gradient is added up: in Megatron's gradient buffer itself, or in a tensor of its own.

    Megatron keeps a buffer per parameter (``main_grad``), zeroed before a step, and adds what autograd
    hands it, unless ``grad_added_to_main_grad`` says that it was added there already. That saves writing all
    experts' gradients a second time, and an expert without rows costs nothing.
    """

    def __init__(self, weight: Any, counts: Sequence[int]) -> None:
        main: Any = getattr(weight, "main_grad", None)
        self._fused = main is not None and main.dtype == weight.dtype and hasattr(weight, "grad_added_to_main_grad")
        # Autograd wants a gradient of the right shape all the same; these pages are never touched.
        self._handed = torch.empty_like(weight)
        self._stacked: Tensor = (main if self._fused else self._handed).view(len(counts), -1, weight.shape[1])
        if self._fused:
            weight.grad_added_to_main_grad = True
        else:
            for expert, count in enumerate(counts):
                if not count:
                    self._stacked[expert].zero_()

    def add(self, expert: int, grad_NO: Tensor, x_NI: Tensor, first: bool) -> None:
        """An expert's gradient (+)= grad^T x; ``first`` is its first block."""
        total = self._stacked[expert]
        torch.addmm(total, grad_NO.t(), x_NI, beta=0 if first and not self._fused else 1, out=total)

    def result(self) -> Tensor:
        """What autograd is handed."""
        return self._handed


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, probs_R: Tensor, fc1: Tensor, fc2: Tensor, counts: tuple[int, ...], act: str
    ) -> Tensor:
        fc1_EGD, fc2_EDF = _by_expert(fc1, counts), _by_expert(fc2, counts)
        blocks, p_R1 = _Blocks(counts), probs_R[:, None]
        a_RG = x_RD.new_empty(x_RD.shape[0], fc1_EGD.shape[1])
        y_RD = torch.empty_like(x_RD)
        scratch = x_RD.new_empty(blocks.largest, fc2_EDF.shape[2])
        for expert, rows, _ in blocks:
            a_NG = torch.mm(x_RD[rows], fc1_EGD[expert].t(), out=a_RG[rows])
            h_NF = _activate(act, a_NG, p_R1[rows], scratch[: a_NG.shape[0]])
            torch.mm(h_NF, fc2_EDF[expert].t(), out=y_RD[rows])
        ctx.blocks, ctx.act = blocks, act
        ctx.save_for_backward(x_RD, probs_R, fc1, fc2, a_RG)
        return y_RD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_RD, probs_R, fc1, fc2, a_RG = ctx.saved_tensors
        blocks, p_R1, dy_RD = ctx.blocks, probs_R[:, None], grads[0].contiguous()
        fc1_EGD, fc2_EDF = _by_expert(fc1, blocks.counts), _by_expert(fc2, blocks.counts)
        dfc1, dfc2 = _WeightGradient(fc1, blocks.counts), _WeightGradient(fc2, blocks.counts)
        dx_RD, dp_R = torch.empty_like(x_RD), torch.empty_like(probs_R)
        f = fc2.shape[1]
        scratch = x_RD.new_empty(5, blocks.largest * f)
        for expert, rows, first in blocks:
            x_ND, dy_ND, a_NG = x_RD[rows], dy_RD[rows], a_RG[rows]
            n = a_NG.shape[0]
            dh_NF, h_NF, s_NF = (scratch[i, : n * f].view(n, f) for i in range(3))
            da_NG = scratch[3:].view(-1)[: 2 * n * f].view(n, 2 * f)
            torch.mm(dy_ND, fc2_EDF[expert], out=dh_NF)
            _activate_backward(ctx.act, a_NG, p_R1[rows], dh_NF, h_NF, s_NF, da_NG, dp_R[rows])
            dfc2.add(expert, dy_ND, h_NF, first)
            dfc1.add(expert, da_NG, x_ND, first)
            torch.mm(da_NG, fc1_EGD[expert], out=dx_RD[rows])
        return dx_RD, dp_R, dfc1.result(), dfc2.result(), None, None


def _by_expert(weight: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
    return weight.view(len(counts), -1, weight.shape[1])


class _GroupedMM(torch.autograd.Function):
    """`torch.nn.functional.grouped_mm`: int32 ends of groups, no fp64, contiguous gradients, no rows past the end."""

    @staticmethod
    def forward(
        ctx: Any,
        x_RD: Tensor,
        probs_R: Tensor,
        fc1: Tensor,
        fc2: Tensor,
        ends: Tensor,
        act: str,
        compiled: bool,
    ) -> Tensor:
        fc1_EGD, fc2_EDF = _by_expert(fc1, ends), _by_expert(fc2, ends)
        a_RG = F.grouped_mm(x_RD, fc1_EGD.transpose(1, 2), offs=ends)
        p_R1 = probs_R[:, None]
        if compiled:
            _any_rows(a_RG, p_R1)
            h_RF = region(True, _gated, act, a_RG, p_R1)
        else:
            h_RF = _activate(act, a_RG, p_R1, x_RD.new_empty(x_RD.shape[0], fc2_EDF.shape[2]))
        ctx.act, ctx.compiled = act, compiled
        ctx.save_for_backward(x_RD, probs_R, fc1, fc2, a_RG, ends)
        return F.grouped_mm(h_RF, fc2_EDF.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_RD, probs_R, fc1, fc2, a_RG, ends = ctx.saved_tensors
        fc1_EGD, fc2_EDF = _by_expert(fc1, ends), _by_expert(fc2, ends)
        # Also a single row, contiguous with any stride, must have that of a row.
        dy_RD = grads[0].contiguous().view(-1).view(x_RD.shape)
        dh_RF = F.grouped_mm(dy_RD, fc2_EDF, offs=ends)
        p_R1 = probs_R[:, None]
        if ctx.compiled:
            _any_rows(a_RG, p_R1, dh_RF)
            h_RF, da_RG, dp_R = region(True, _gated_backward, ctx.act, a_RG, p_R1, dh_RF)
        else:
            h_RF, s_RF, da_RG = torch.empty_like(dh_RF), torch.empty_like(dh_RF), torch.empty_like(a_RG)
            dp_R = torch.empty_like(probs_R)
            _activate_backward(ctx.act, a_RG, p_R1, dh_RF, h_RF, s_RF, da_RG, dp_R)
        dfc2_EDF = F.grouped_mm(dy_RD.t(), h_RF, offs=ends)
        dfc1_EGD = F.grouped_mm(da_RG.t(), x_RD, offs=ends)
        dx_RD = F.grouped_mm(da_RG, fc1_EGD, offs=ends)
        return dx_RD, dp_R, dfc1_EGD.flatten(0, 1), dfc2_EDF.flatten(0, 1), None, None, None
