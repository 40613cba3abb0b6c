"""What computes the weights of every token, for CPUs, in C++ (`weights.cpp`): what torch.compile cannot say.

Products with Q read every number of x once, with the sums of squares beside them, and tiles of tokens and rows stay in
registers; the way back reads x, d_x and d_u once for both of its products. torch.compile has neither such tiles nor
such products for tall matrices, and MKL reads x again for each. Sinkhorn's iterations hold the matrices of 16 tokens in
registers, and on the way back do them again: only the softmax is kept.

The source is compiled by torch.compile's own compiler and kept where it keeps its kernels (TORCHINDUCTOR_CACHE_DIR),
in about 2 seconds, once for all shapes. It is for fp32; other types, and widths that are no multiple of CHUNK, are
`plain_weights`'.

Q's gradient is summed over each PIECE of tokens, then over the pieces: the order of additions does not depend on the
number of threads, and the error does not grow with T.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import Reads, plain_weights
from altup_moe.altup.kernels.compiled import KERNEL
from altup_moe.device.compiled_functions import compiler_failed

CHUNK = 64
"""Features of a tile, as in the source."""
PIECE = 256
"""Tokens of one partial sum of d_Q."""
WIDEST = 8
"""Largest K of Sinkhorn's matrices."""


def project(x_KTD: Tensor, project: Tensor) -> tuple[Tensor, Tensor]:
    """(Q x [N, T], sums of squares of x [T])."""
    if not _fits(x_KTD, project):
        return plain_weights.project(x_KTD, project)
    (k, t, d), n = x_KTD.shape, project.shape[0]
    products_NT, squares_T = project.new_empty(n, t), project.new_empty(t)
    _call("project", x_KTD.contiguous(), _packed(project, k), products_NT, squares_T, k, t, d, n)
    return products_NT, squares_T


def project_backward(
    d_KTD: Tensor, x_KTD: Tensor, project: Tensor, d_products_NT: Tensor, d_squares_T: Tensor, reads: Reads | None
) -> Tensor:
    """d_x += Q^T d_products + 2 d_squares x + r d_u, in place; d_Q [N, K*D]."""
    if not _fits(x_KTD, project, d_KTD):
        return plain_weights.project_backward(d_KTD, x_KTD, project, d_products_NT, d_squares_T, reads)
    (k, t, d), n = x_KTD.shape, project.shape[0]
    read_KT, d_u = (None, None) if reads is None else (tensor.float().contiguous() for tensor in reads)
    sums = project.new_zeros(-(-t // PIECE), k, d // CHUNK, n, CHUNK)
    given = d_KTD, x_KTD.contiguous(), d_u, read_KT, _packed(project, k)
    _call("project_backward", *given, d_products_NT.t().contiguous(), d_squares_T.contiguous(), sums, k, t, d, n, PIECE)
    return sums.sum(0).permute(2, 0, 1, 3).reshape(project.shape)


def dots(x_KTD: Tensor, u_TD: Tensor) -> Tensor:
    """x . u of each block and token, [K, T]."""
    if not _fits(x_KTD, u_TD):
        return plain_weights.dots(x_KTD, u_TD)
    k, t, d = x_KTD.shape
    out_KT = x_KTD.new_empty(k, t)
    _call("dots", x_KTD.contiguous(), u_TD.contiguous(), out_KT, k, t, d)
    return out_KT


def sinkhorn(soft_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """comb [K, K, T]."""
    return _sinkhorn(soft_KKT, None, iterations, eps)


def sinkhorn_backward(d_KKT: Tensor, soft_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    """The gradient of the logits."""
    return _sinkhorn(soft_KKT, d_KKT, iterations, eps)


def _sinkhorn(soft_KKT: Tensor, d_KKT: Tensor | None, iterations: int, eps: float) -> Tensor:
    k, _, t = soft_KKT.shape
    if soft_KKT.dtype is not torch.float32 or k > WIDEST:
        if d_KKT is None:
            return plain_weights.sinkhorn(soft_KKT, iterations, eps)
        return plain_weights.sinkhorn_backward(d_KKT, soft_KKT, iterations, eps)
    out_KKT = torch.empty_like(soft_KKT, memory_format=torch.contiguous_format)
    d_KKT = None if d_KKT is None else d_KKT.contiguous()
    _call("sinkhorn", soft_KKT.contiguous(), d_KKT, out_KKT, k, t, 2 * iterations - 1, eps)
    return out_KKT


def _fits(*tensors: Tensor) -> bool:
    return all(t.dtype is torch.float32 and t.shape[-1] % CHUNK == 0 for t in tensors)


def _packed(project: Tensor, k: int) -> Tensor:
    """Q [N, K*D] -> [K, D / CHUNK, N, CHUNK]."""
    return project.detach().view(len(project), k, -1, CHUNK).permute(1, 2, 0, 3).contiguous()


def _call(function: str, *args: Any) -> None:
    """Run a function of the source. Tensors, or None, come as pointers; the number of threads last."""
    values: list[Any] = []
    for arg in args:
        if arg is None or isinstance(arg, Tensor):
            values.append(ctypes.c_void_p(None if arg is None else arg.data_ptr()))
        else:
            values.append(ctypes.c_float(arg) if isinstance(arg, float) else ctypes.c_longlong(arg))
    getattr(_library(), function)(*values, ctypes.c_int(torch.get_num_threads()))


@functools.cache
def _library() -> Any:
    """The compiled source."""
    from torch._inductor.codecache import CppCodeCache
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    source = Path(__file__).with_name("weights.cpp").read_text(encoding="utf-8")
    try:
        return CppCodeCache.load(source, "cpu", extra_flags=("-ffp-contract=fast",))
    except (CppCompileError, InvalidCxxCompiler) as error:
        raise compiler_failed(KERNEL, error) from error
