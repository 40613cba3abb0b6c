"""The one pass for CPUs: `torch.compile` makes one loop over the columns of what `plain` says in many passes.

The blocks are unbound in Python, so K, R and C are unrolled: in the generated C++ a vector of each of the C inputs is
loaded once, R results are stored, and the R*C numbers of W are scalars. Half types are widened in registers.
N stays a variable: one compilation serves all sizes. Others are made for each K, R, dtype and number of threads, in
seconds each; they are kept on disk where TORCHINDUCTOR_CACHE_DIR says.

Backward: columns are cut into pieces of PIECE, and d_W is summed over each piece, then over the pieces. Thus the error
of a sum does not grow with N, the order of additions does not depend on the number of threads, and the sums become
vector loops (d and x are read again for them: 25 running sums for K = 4 do not fit beside the rest in registers).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import Rows, plain
from altup_moe.device.compiled_functions import Asked, run_compiled

KERNEL = Asked("altup.kernel=compile", "altup.kernel=torch")
PIECE = 4096
"""Columns of one partial sum of d_W."""
CONTRACT: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Multiply-adds may be fused: half the arithmetic, and more exact. Inductor forbids it unless told."""


def forward(x_KN: Tensor, ys: Rows, w_RC: Tensor) -> Tensor:
    """out = W [x; ys], [R, N] in x's dtype."""
    with torch.no_grad():
        # Detached, for whether a tensor wants a gradient is among the things that a compilation is made for.
        x_KN, w_RC, ys = x_KN.detach(), w_RC.detach(), tuple(y_N.detach() for y_N in ys)
        _mark_columns(x_KN, *ys)
        return run_compiled(KERNEL, _combine_all, CONTRACT, x_KN, ys, w_RC)


def backward(d_RN: Tensor, ds: Rows, x_KN: Tensor, ys: Rows, w_RC: Tensor) -> tuple[Tensor, Rows, Tensor]:
    """d_x = W_x^T d, d_ys = W_y^T d, d_W = d [x; ys]^T (fp32), where d is [d_RN; ds]."""
    columns = x_KN.shape[1]
    whole = columns - columns % PIECE
    if whole == 0:
        return plain.backward(d_RN, ds, x_KN, ys, w_RC)
    with torch.no_grad():
        if whole == columns:
            return _whole_pieces(d_RN, ds, x_KN, ys, w_RC)
        # The ragged end is shorter than a piece. What is before it is copied, for rows that do not follow each other
        # would be compiled for again. (Tokens times width is nearly always a multiple of PIECE.)
        fronts = [tuple(row[:whole] for row in rows) for rows in (ds, ys)]
        ends = [tuple(row[whole:] for row in rows) for rows in (ds, ys)]
        front = _whole_pieces(d_RN[:, :whole].contiguous(), fronts[0], x_KN[:, :whole].contiguous(), fronts[1], w_RC)
        end = plain.backward(d_RN[:, whole:], ends[0], x_KN[:, whole:], ends[1], w_RC)
        d_ys = tuple(torch.cat(pair) for pair in zip(front[1], end[1], strict=True))
        return torch.cat([front[0], end[0]], dim=1), d_ys, front[2] + end[2]


def _whole_pieces(d_RN: Tensor, ds: Rows, x_KN: Tensor, ys: Rows, w_RC: Tensor) -> tuple[Tensor, Rows, Tensor]:
    d_RPN, x_KPN = (tensor.detach().unflatten(1, (-1, PIECE)) for tensor in (d_RN, x_KN))
    ds_PN, ys_PN = (tuple(row.detach().unflatten(0, (-1, PIECE)) for row in rows) for rows in (ds, ys))
    _mark_columns(d_RPN, x_KPN, *ds_PN, *ys_PN)
    d_x, d_ys, sums_CP = run_compiled(KERNEL, _derive_all, CONTRACT, d_RPN, ds_PN, x_KPN, ys_PN, w_RC.detach())
    return d_x.view(x_KN.shape), tuple(d_y.view(-1) for d_y in d_ys), sums_CP.sum(-1).view_as(w_RC)


def _mark_columns(*tensors: Tensor) -> None:
    """N, or the number of its pieces, stays a variable. Blocks [K, N] have it second, single rows first."""
    wide = tensors[0].dim()
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 1 if tensor.dim() == wide else 0)


def _combine_all(x_KN: Tensor, ys: Rows, w_RC: Tensor) -> Tensor:
    return torch.stack([out.to(x_KN.dtype) for out in combine([*x_KN.unbind(0), *ys], w_RC)])


def _derive_all(d_RPN: Tensor, ds: Rows, x_KPN: Tensor, ys: Rows, w_RC: Tensor) -> tuple[Tensor, Rows, Tensor]:
    grads, inputs = [*d_RPN.unbind(0), *ds], [*x_KPN.unbind(0), *ys]
    d_inputs = [d.to(x_KPN.dtype) for d in combine(grads, w_RC.t())]
    products = [(d.float() * x.float()).sum(-1) for d in grads for x in inputs]
    blocks = x_KPN.shape[0]
    return torch.stack(d_inputs[:blocks]), tuple(d_inputs[blocks:]), torch.stack(products)


def combine(inputs: list[Tensor], weights: Tensor) -> list[Tensor]:
    """Row i of the result, fp32: the sum over j of weights[i, j] inputs[j]. Weights: scalars, or [T, 1]."""
    wide = [tensor.float() for tensor in inputs]
    results = []
    for i in range(weights.shape[0]):
        total = weights[i, 0] * wide[0]
        for j in range(1, len(wide)):
            total = total + weights[i, j] * wide[j]
        results.append(total)
    return results
