"""The pass with a matrix for each token, for GPUs, in Triton: every block is read once and written once.

A program owns TOKENS tokens, and FEATURES of their features at a time: each warp has a token, so that the numbers of
its W are scalars to it. They are loaded where they are used: of K = 8, all 81 would not stay in registers. Rows and
columns are unrolled, accesses have 16 bytes and offsets 64 bits, as in `triton_kernels`.

d_W of a token is a sum over its features. One program sums all of them, tile after tile: no atomics, no partial sums in
memory, the same input gives the same bits. So the backward pass has one tile size, and only the forward pass is tuned.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altup_moe.altup.kernels.triton_kernels import INTERPRETED, OPTIONS, load_rows, tl, triton

INTERPRETED_TILE = {"TOKENS": 8, "FEATURES": 64}
"""Small, so that a test has several tiles and ragged ones."""
BACKWARD_TILE = {"TOKENS": 4, "FEATURES": 128}
"""With 4 warps: 4 features a thread. The rows and the R*C sums of K = 4 stay in registers, of K = 8 not all (400 bytes
of a thread lie in its stack)."""
BACKWARD_WARPS = 4


@triton.jit
def _offsets(first_token: tl.tensor, features: tl.tensor, d: tl.tensor, TOKENS: tl.constexpr) -> tl.tensor:
    """Where a tile's numbers lie in a block, [TOKENS, FEATURES]."""
    tokens = first_token + tl.arange(0, TOKENS)
    return tokens[:, None] * d + features[None, :]


@triton.jit
def _forward_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    w_ptr: tl.tensor,
    out_ptr: tl.tensor,
    t: tl.tensor,
    d: tl.tensor,
    n: tl.tensor,
    K: tl.constexpr,
    HAS_Y: tl.constexpr,
    R: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    C: tl.constexpr = K + HAS_Y
    first = tl.program_id(0).to(tl.int64) * TOKENS
    tokens = first + tl.arange(0, TOKENS)
    features = tl.program_id(1) * FEATURES + tl.arange(0, FEATURES)
    here = tokens < t
    mask = here[:, None] & (features < d)[None, :]
    at = _offsets(first, features, d, TOKENS)
    inputs = load_rows(x_ptr + at, n, mask, K)
    if HAS_Y:
        inputs = inputs + load_rows(y_ptr + at, n, mask, 1)
    out, w = out_ptr + at, w_ptr + tokens
    for _ in tl.static_range(R):
        total = tl.load(w, mask=here, other=0.0)[:, None] * inputs[0]
        w += t
        for c in tl.static_range(1, C):
            total += tl.load(w, mask=here, other=0.0)[:, None] * inputs[c]
            w += t
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)
        out += n


@triton.jit
def _backward_kernel(
    d_ptr: tl.tensor,
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    w_ptr: tl.tensor,
    d_x_ptr: tl.tensor,
    d_y_ptr: tl.tensor,
    d_w_ptr: tl.tensor,
    t: tl.tensor,
    d: tl.tensor,
    n: tl.tensor,
    w_row: tl.tensor,
    K: tl.constexpr,
    HAS_Y: tl.constexpr,
    R: tl.constexpr,
    TOKENS: tl.constexpr,
    FEATURES: tl.constexpr,
) -> None:
    C: tl.constexpr = K + HAS_Y
    first = tl.program_id(0).to(tl.int64) * TOKENS
    tokens = first + tl.arange(0, TOKENS)
    here = tokens < t
    zeros = tl.zeros([TOKENS], tl.float32)
    sums = ()  # [C, R] of them, a column after the other
    for _ in tl.static_range(C * R):
        sums = sums + (zeros,)  # type: ignore[assignment] # noqa: RUF005
    for start in range(0, d, FEATURES):
        features = start + tl.arange(0, FEATURES)
        mask = here[:, None] & (features < d)[None, :]
        at = _offsets(first, features, d, TOKENS)
        grads = load_rows(d_ptr + at, n, mask, R)
        inputs = load_rows(x_ptr + at, n, mask, K)
        if HAS_Y:
            inputs = inputs + load_rows(y_ptr + at, n, mask, 1)
        d_x, w_column = d_x_ptr + at, w_ptr + tokens
        added = ()
        for c in tl.static_range(C):
            total = tl.zeros([TOKENS, FEATURES], tl.float32)
            w = w_column
            for r in tl.static_range(R):
                total += tl.load(w, mask=here, other=0.0)[:, None] * grads[r]
                w += w_row
                added = added + (sums[c * R + r] + tl.sum(grads[r] * inputs[c], axis=1),)  # type: ignore[assignment] # noqa: RUF005
            w_column += t
            if c < K:
                tl.store(d_x, total.to(d_x_ptr.dtype.element_ty), mask=mask)
                d_x += n
            else:
                tl.store(d_y_ptr + at, total.to(d_y_ptr.dtype.element_ty), mask=mask)
        sums = added
    d_w_column = d_w_ptr + tokens
    for c in tl.static_range(C):
        d_w = d_w_column
        for r in tl.static_range(R):
            tl.store(d_w, sums[c * R + r], mask=here)
            d_w += w_row
        d_w_column += t


if not INTERPRETED:
    _forward_kernel = triton.autotune(
        [
            triton.Config({"TOKENS": tokens, "FEATURES": features}, num_warps=tokens)
            for tokens in (4, 8)
            for features in (128, 256, 512)
        ],
        key=["d", "K", "HAS_Y", "R"],
    )(_forward_kernel)


def token_forward(x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor) -> Tensor:
    """out[r] = sum over c of W[r, c] [x; y][c], [R, T, D] in x's dtype."""
    (blocks, t, d), rows = x_KTD.shape, w_RCT.shape[0]
    x_KTD, w_RCT = x_KTD.contiguous(), w_RCT.contiguous()
    y = x_KTD if y_TD is None else y_TD.contiguous()  # some pointer must be given; it is not read without y
    out_RTD = torch.empty(rows, t, d, dtype=x_KTD.dtype, device=x_KTD.device)
    tile = INTERPRETED_TILE if INTERPRETED else {}  # otherwise the tuner's
    with torch.cuda.device_of(x_KTD):
        _forward_kernel[lambda meta: (triton.cdiv(t, meta["TOKENS"]), triton.cdiv(d, meta["FEATURES"]))](
            x_KTD, y, w_RCT, out_RTD, t, d, t * d, K=blocks, HAS_Y=y_TD is not None, R=rows, **tile, **OPTIONS
        )
    return out_RTD


def token_backward(
    d_RTD: Tensor, x_KTD: Tensor, y_TD: Tensor | None, w_RCT: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """d_x = W_x^T d, d_y = w_y^T d, d_W = d [x; y]^T (fp32), each for every token."""
    (blocks, t, d), (rows, columns, _) = x_KTD.shape, w_RCT.shape
    d_RTD, x_KTD, w_RCT = d_RTD.contiguous(), x_KTD.contiguous(), w_RCT.contiguous()
    y = x_KTD if y_TD is None else y_TD.contiguous()
    d_x, d_w_RCT = torch.empty_like(x_KTD), torch.empty_like(w_RCT)
    d_y = None if y_TD is None else torch.empty_like(y)
    tile = INTERPRETED_TILE if INTERPRETED else BACKWARD_TILE
    with torch.cuda.device_of(x_KTD):
        _backward_kernel[(triton.cdiv(t, tile["TOKENS"]),)](
            d_RTD,
            x_KTD,
            y,
            w_RCT,
            d_x,
            d_x if d_y is None else d_y,
            d_w_RCT,
            t,
            d,
            t * d,
            columns * t,
            K=blocks,
            HAS_Y=y_TD is not None,
            R=rows,
            **tile,
            num_warps=BACKWARD_WARPS,
            **OPTIONS,
        )
    return d_x, d_y, d_w_RCT


def token_write(x_KTD: Tensor, y_TD: Tensor, g_KT: Tensor) -> Tensor:
    """x + g y, [K, T, D] in x's dtype: the whole pass with M = I, which moves the same bytes."""
    blocks, tokens = g_KT.shape
    eye = torch.eye(blocks, dtype=g_KT.dtype, device=g_KT.device)[..., None].expand(-1, -1, tokens)
    return token_forward(x_KTD, y_TD, torch.cat([eye, g_KT[:, None]], dim=1))
