"""The pass with a matrix for each token, for CPUs: `torch.compile` makes one loop over the tokens and their features.

Rows and columns are unrolled as in `compiled`: for one token the R*C numbers of W are scalars, and a vector of each
input is loaded once. T stays a variable; K, R, C, dtype, number of threads and at first D are compiled for.

Tokens come last in W and d_W, and the R*C numbers of one token lie T apart: for a T that is a power of two, all in one
set of the cache, which does not hold so many. They are brought together before the loop ([T, R, C], a copy of R*C/D of
a block), which more than halves the time of the whole pass.

Backward: d_W of a token is a sum over its D features, made in the loop that makes d_x and d_y, for all R*C at once. One
thread sums a token, in one order, whatever their number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels.compiled import CONTRACT, KERNEL, combine
from altup_moe.device.compiled_functions import run_compiled

ONE_LOOP: dict[str, Any] = {**CONTRACT, "cpp.max_horizontal_fusion_size": 64}
"""All that K = 4 has in one loop, 25 sums and 5 blocks. Inductor by itself stops at 16 and begins another loop, which
reads d and x from memory again. K = 8 has 81 sums: one loop of them is no faster, and compiles for a minute."""


def token_forward(x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor) -> Tensor:
    """out[r] = sum over c of W[r, c] [x; y][c], [R, T, D] in x's dtype."""
    with torch.no_grad():
        x_KTD, y_TD = _inputs(x_KTD, y_TD)
        return run_compiled(KERNEL, _combine_all, ONE_LOOP, x_KTD, y_TD, _by_token(w_RCT))


def token_backward(
    d_RTD: Tensor, x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """d_x = W_x^T d, d_y = w_y^T d, d_W = d [x; y]^T (fp32), each for every token."""
    with torch.no_grad():
        x_KTD, y_TD = _inputs(x_KTD, y_TD)
        d_RTD = _ready(d_RTD, 1)
        d_x, d_y, d_w_TQ = run_compiled(KERNEL, _derive_all, ONE_LOOP, d_RTD, x_KTD, y_TD, _by_token(w_RCT))
        return d_x, d_y, d_w_TQ.t().contiguous().view(w_RCT.shape)


def token_write(x_KTD: Tensor, y_TD: Tensor, g_KT: Tensor) -> Tensor:
    """x + g y, [K, T, D] in x's dtype."""
    with torch.no_grad():
        return run_compiled(KERNEL, _write_all, ONE_LOOP, _ready(x_KTD, 1), _ready(y_TD, 0), _ready(g_KT, 1))


def _ready(tensor: Tensor, tokens: int) -> Tensor:
    """Contiguous, for other strides would be compiled for again; ``tokens`` is the dimension that stays a variable."""
    tensor = tensor.detach().contiguous()
    torch._dynamo.maybe_mark_dynamic(tensor, tokens)
    return tensor


def _inputs(x_KTD: Tensor, y_TD: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return _ready(x_KTD, 1), None if y_TD is None else _ready(y_TD, 0)


def _by_token(w_RCT: Tensor) -> Tensor:
    """[T, R, C]."""
    w_TRC = w_RCT.detach().movedim(-1, 0).clone(memory_format=torch.contiguous_format)
    torch._dynamo.maybe_mark_dynamic(w_TRC, 0)
    return w_TRC


def _unbound(x_KTD: Tensor, y_TD: Tensor | None) -> list[Tensor]:
    return [*x_KTD.unbind(0)] if y_TD is None else [*x_KTD.unbind(0), y_TD]


def _combine_all(x_KTD: Tensor, y_TD: Tensor | None, w_TRC: Tensor) -> Tensor:
    weights_RCT1 = w_TRC.movedim(0, -1).unsqueeze(-1)
    return torch.stack([out.to(x_KTD.dtype) for out in combine(_unbound(x_KTD, y_TD), weights_RCT1)])


def _write_all(x_KTD: Tensor, y_TD: Tensor, g_KT: Tensor) -> Tensor:
    y = y_TD.float()
    pairs = zip(x_KTD.unbind(0), g_KT.unsqueeze(-1).unbind(0), strict=True)
    return torch.stack([(x.float() + g * y).to(x_KTD.dtype) for x, g in pairs])


def _derive_all(
    d_RTD: Tensor, x_KTD: Tensor, y_TD: Tensor | None, w_TRC: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    weights_RCT1 = w_TRC.movedim(0, -1).unsqueeze(-1)
    d_x = combine([*d_RTD.unbind(0)], weights_RCT1.transpose(0, 1))
    d_y = None if y_TD is None else d_x.pop().to(y_TD.dtype)
    inputs = _unbound(x_KTD, y_TD)
    products = [(d.float() * x.float()).sum(-1) for d in d_RTD.unbind(0) for x in inputs]
    return torch.stack([d.to(x_KTD.dtype) for d in d_x]), d_y, torch.stack(products, -1)
