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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from altup_moe.altup.kernels import plain

PIECE = 4096
"""Columns of one partial sum of d_W."""
CONTRACT: dict[str, Any] = {"cpp.enable_floating_point_contract_flag": "fast"}
"""Multiply-adds may be fused: half the arithmetic, and more exact. Inductor forbids it unless told."""


def forward(x_KN: Tensor, y_N: Tensor | None, w_RC: Tensor) -> Tensor:
    """out = W [x; y], [R, N] in x's dtype."""
    with torch.no_grad():
        # Detached, for whether a tensor wants a gradient is among the things that a compilation is made for.
        x_KN, w_RC = x_KN.detach(), w_RC.detach()
        y_N = None if y_N is None else y_N.detach()
        for tensor, dim in ((x_KN, 1), (y_N, 0)):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return run_compiled(_combine_all, CONTRACT, x_KN, y_N, w_RC)


def backward(d_RN: Tensor, x_KN: Tensor, y_N: Tensor | None, w_RC: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """d_x = W_x^T d, d_y = w_y^T d, d_W = d [x; y]^T (fp32)."""
    columns = x_KN.shape[1]
    whole = columns - columns % PIECE
    if whole == 0:
        return plain.backward(d_RN, x_KN, y_N, w_RC)
    with torch.no_grad():
        if whole == columns:
            return _whole_pieces(d_RN, x_KN, y_N, w_RC)
        # The ragged end is shorter than a piece. What is before it is copied, for rows that do not follow each other
        # would be compiled for again. (Tokens times width is nearly always a multiple of PIECE.)
        front = (d_RN[:, :whole].contiguous(), x_KN[:, :whole].contiguous(), None if y_N is None else y_N[:whole])
        d_x, d_y, d_w = _whole_pieces(*front, w_RC)
        end_y = None if y_N is None else y_N[whole:]
        end_d_x, end_d_y, end_d_w = plain.backward(d_RN[:, whole:], x_KN[:, whole:], end_y, w_RC)
        if d_y is not None and end_d_y is not None:
            d_y = torch.cat([d_y, end_d_y])
        return torch.cat([d_x, end_d_x], dim=1), d_y, d_w + end_d_w


def _whole_pieces(d_RN: Tensor, x_KN: Tensor, y_N: Tensor | None, w_RC: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    d_RPN, x_KPN = (tensor.detach().unflatten(1, (-1, PIECE)) for tensor in (d_RN, x_KN))
    y_PN = None if y_N is None else y_N.detach().unflatten(0, (-1, PIECE))
    for tensor, dim in ((d_RPN, 1), (x_KPN, 1), (y_PN, 0)):
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
    d_x, d_y, sums_CP = run_compiled(_derive_all, CONTRACT, d_RPN, x_KPN, y_PN, w_RC.detach())
    return d_x.view(x_KN.shape), None if d_y is None else d_y.view(-1), sums_CP.sum(-1).view_as(w_RC)


def _combine_all(x_KN: Tensor, y_N: Tensor | None, w_RC: Tensor) -> Tensor:
    columns_C = [*x_KN.unbind(0)] if y_N is None else [*x_KN.unbind(0), y_N]
    return torch.stack([out.to(x_KN.dtype) for out in combine(columns_C, w_RC)])


def _derive_all(
    d_RPN: Tensor, x_KPN: Tensor, y_PN: Tensor | None, w_RC: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    d_x = [*combine([*d_RPN.unbind(0)], w_RC.t())]
    d_y = None if y_PN is None else d_x.pop().to(y_PN.dtype)
    inputs_C = [*x_KPN.unbind(0)] if y_PN is None else [*x_KPN.unbind(0), y_PN]
    products = [(d.float() * x.float()).sum(-1) for d in d_RPN.unbind(0) for x in inputs_C]
    return torch.stack([d.to(x_KPN.dtype) for d in d_x]), d_y, torch.stack(products)


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


_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}
_LIMIT = 256
"""Compilations of one function: K, R, C, dtypes, threads. Dynamo's own limit of 8 is soon reached by tests."""


def run_compiled(function: Callable[..., Any], options: dict[str, Any], *args: Any) -> Any:
    """The function's result, compiled at its first call for such arguments. A function always has the same options."""
    if function not in _COMPILED:
        limit: Any = {"recompile_limit": _LIMIT}  # torch.compile's overloads, as typed, lack it
        _COMPILED[function] = torch.compile(function, fullgraph=True, options=options, **limit)
    try:
        return _COMPILED[function](*args)
    except TorchDynamoException as error:
        raise RuntimeError(
            "altup.kernel=compile: torch.compile failed, as it does where there is no C++ compiler (g++, or what CXX "
            f"names); altup.kernel=torch needs none. It said: {str(error).strip().splitlines()[0]}"
        ) from error
