"""The one pass for GPUs, in Triton: every block is read once and written once, in either direction.

A program owns BLOCK neighbouring columns. Rows are unrolled: K, R and C are compile-time constants, W's R*C numbers
are scalars. BLOCK is a multiple of 8 and Triton sees from the values whether N and the pointers are multiples of 16:
then a thread's accesses have 16 bytes, otherwise they shrink to what is aligned. Row pointers advance by N each, so
offsets are 64 bits wide whatever K*N is.

d_W is a sum over all columns. Each program writes R*C partial sums, and torch adds them up: no atomics, the order of
the additions is fixed, the same input gives the same bits. For the same reason only the forward pass is tuned by
timing: another tile would be another order, and a resumed run may time differently.

Runs on a CPU too, for tests, when TRITON_INTERPRET=1 is set before triton is imported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from altup_moe.altup.kernels import Rows

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise RuntimeError(
        "altup.kernel=triton: triton is not installed. CUDA builds of torch bring it; "
        "altup.kernel=torch and altup.kernel=compile need none"
    ) from error

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether Triton runs these kernels in numpy, on tensors of the CPU."""
INTERPRETED_BLOCK = 64
"""Small, so that a test has several tiles and a ragged one."""
OPTIONS = {} if INTERPRETED else {"enable_fp_fusion": True}
"""Multiply-adds are fused, whatever the version's default: another would be other bits."""
BACKWARD_BLOCK, BACKWARD_WARPS = 1024, 4
"""Tile of the backward pass: 8 columns a thread keep the rows of K = 8 in registers."""


@triton.jit
def load_rows(pointers: tl.tensor, n: tl.tensor, mask: tl.tensor, ROWS: tl.constexpr) -> tl.tuple:
    """A tuple of ROWS tiles, fp32; zeros where masked."""
    rows = ()  # grows while the loop is unrolled
    for _ in tl.static_range(ROWS):
        rows = rows + (tl.load(pointers, mask=mask, other=0.0).to(tl.float32),)  # type: ignore[assignment] # noqa: RUF005
        pointers += n
    return rows


@triton.jit
def _columns(BLOCK: tl.constexpr) -> tl.tensor:
    """This program's column numbers, 64 bits."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    return tl.max_contiguous(tl.multiple_of(first + tl.arange(0, BLOCK), BLOCK), BLOCK)


@triton.jit
def _load_all(
    pointers: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    columns: tl.tensor,
    n: tl.tensor,
    mask: tl.tensor,
    ROWS: tl.constexpr,
    SINGLES: tl.constexpr,
) -> tl.tuple:
    """ROWS rows that follow each other, then SINGLES (none to two) that lie elsewhere."""
    rows = load_rows(pointers + columns, n, mask, ROWS)
    if SINGLES > 0:
        rows = rows + load_rows(first + columns, n, mask, 1)
    if SINGLES > 1:
        rows = rows + load_rows(second + columns, n, mask, 1)
    return rows


@triton.jit
def _forward_kernel(
    x_ptr: tl.tensor,
    y0_ptr: tl.tensor,
    y1_ptr: tl.tensor,
    w_ptr: tl.tensor,
    out_ptr: tl.tensor,
    n: tl.tensor,
    K: tl.constexpr,
    YS: tl.constexpr,
    R: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    C: tl.constexpr = K + YS
    columns = _columns(BLOCK)
    mask = columns < n
    inputs = _load_all(x_ptr, y0_ptr, y1_ptr, columns, n, mask, K, YS)
    out = out_ptr + columns
    for r in tl.static_range(R):
        total = tl.load(w_ptr + r * C) * inputs[0]
        for c in tl.static_range(1, C):
            total += tl.load(w_ptr + r * C + c) * inputs[c]
        tl.store(out, total.to(out_ptr.dtype.element_ty), mask=mask)
        out += n


@triton.jit
def _backward_kernel(
    d_ptr: tl.tensor,
    d0_ptr: tl.tensor,
    d1_ptr: tl.tensor,
    x_ptr: tl.tensor,
    y0_ptr: tl.tensor,
    y1_ptr: tl.tensor,
    w_ptr: tl.tensor,
    d_x_ptr: tl.tensor,
    d_y0_ptr: tl.tensor,
    d_y1_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    n: tl.tensor,
    K: tl.constexpr,
    YS: tl.constexpr,
    FIRST: tl.constexpr,
    DS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    R: tl.constexpr = FIRST + DS
    C: tl.constexpr = K + YS
    columns = _columns(BLOCK)
    mask = columns < n
    grads = _load_all(d_ptr, d0_ptr, d1_ptr, columns, n, mask, FIRST, DS)
    inputs = _load_all(x_ptr, y0_ptr, y1_ptr, columns, n, mask, K, YS)
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * (R * C)
    d_x = d_x_ptr + columns
    for c in tl.static_range(C):
        total = tl.load(w_ptr + c) * grads[0]
        for r in tl.static_range(1, R):
            total += tl.load(w_ptr + r * C + c) * grads[r]
        if c < K:
            tl.store(d_x, total.to(d_x_ptr.dtype.element_ty), mask=mask)
            d_x += n
        elif c == K:
            tl.store(d_y0_ptr + columns, total.to(d_y0_ptr.dtype.element_ty), mask=mask)
        else:
            tl.store(d_y1_ptr + columns, total.to(d_y1_ptr.dtype.element_ty), mask=mask)
        for r in tl.static_range(R):
            tl.store(sums + r * C + c, tl.sum(grads[r] * inputs[c], axis=0))


if not INTERPRETED:
    _forward_kernel = triton.autotune(
        [triton.Config({"BLOCK": block}, num_warps=warps) for block in (512, 1024, 2048) for warps in (4, 8)],
        key=["K", "YS", "R"],
    )(_forward_kernel)


def _pair(rows: Rows, unused: Tensor) -> tuple[Tensor, Tensor]:
    """Two pointers must be given; those beyond the rows are not used."""
    first, second, *_ = *(row.contiguous() for row in rows), unused, unused
    return first, second


def forward(x_KN: Tensor, ys: Rows, w_RC: Tensor) -> Tensor:
    """out = W [x; ys], [R, N] in x's dtype."""
    (blocks, n), rows = x_KN.shape, w_RC.shape[0]
    x_KN, w_RC = x_KN.contiguous(), w_RC.contiguous()
    out_RN = torch.empty(rows, n, dtype=x_KN.dtype, device=x_KN.device)
    tile = {"BLOCK": INTERPRETED_BLOCK} if INTERPRETED else {}  # otherwise the tuner's
    with torch.cuda.device_of(x_KN):
        _forward_kernel[lambda meta: (triton.cdiv(n, meta["BLOCK"]),)](
            x_KN, *_pair(ys, x_KN), w_RC, out_RN, n, K=blocks, YS=len(ys), R=rows, **tile, **OPTIONS
        )
    return out_RN


def backward(d_RN: Tensor, ds: Rows, x_KN: Tensor, ys: Rows, w_RC: Tensor) -> tuple[Tensor, Rows, Tensor]:
    """d_x = W_x^T d, d_ys = W_y^T d, d_W = d [x; ys]^T (fp32), where d is [d_RN; ds]."""
    (blocks, n), (rows, columns) = x_KN.shape, w_RC.shape
    d_RN, x_KN, w_RC = d_RN.contiguous(), x_KN.contiguous(), w_RC.contiguous()
    d_x = torch.empty_like(x_KN)
    d_ys = tuple(torch.empty(n, dtype=x_KN.dtype, device=x_KN.device) for _ in ys)
    block = INTERPRETED_BLOCK if INTERPRETED else BACKWARD_BLOCK
    programs = triton.cdiv(n, block)
    sums_PRC = torch.empty(programs, rows, columns, dtype=torch.float32, device=x_KN.device)
    with torch.cuda.device_of(x_KN):
        _backward_kernel[(programs,)](
            d_RN,
            *_pair(ds, d_RN),
            x_KN,
            *_pair(ys, x_KN),
            w_RC,
            d_x,
            *_pair(d_ys, d_x),
            sums_PRC,
            n,
            K=blocks,
            YS=len(ys),
            FIRST=d_RN.shape[0],
            DS=len(ds),
            BLOCK=block,
            num_warps=BACKWARD_WARPS,
            **OPTIONS,
        )
    return d_x, d_ys, sums_PRC.sum(0)
