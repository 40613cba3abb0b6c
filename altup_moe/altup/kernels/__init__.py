"""One pass over the wide stream: every block and what is to be written to them in, every block out, one small matrix
between.

All of AltUp is one product with coefficients chosen by the caller:

    out = W [x; ys]       x [K, N] the stream, ys: none to two outputs [N] of steps, W [R, C], C = K to K + 2

or, in variants whose coefficients are computed, with a matrix W [R, C, T] that has one for each of the T tokens.

Shape legend: K blocks, T tokens, D width of a block, N = T*D, R rows of the result, C columns of W.
Bytes in blocks: forward C read + R written; backward R + C read (what arrived, what was saved) + C written.

Three implementations with one contract (`Kernel`): `plain` is the definition, in torch; `compiled` is fused by
torch.compile for CPUs; `triton` is for GPUs. All sum in fp32, whatever the stream's dtype. `altup-moe bench mixing`
compares them. On a CPU `compile` is the fastest by far, but it needs a C++ compiler and seconds before the first step:
it is taken when asked for, never by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = tuple[Tensor, ...]
"""None to two single rows, [N] each."""
Forward = Callable[[Tensor, Rows, Tensor], Tensor]
"""(x [K, N], ys, W [R, C] fp32) -> out [R, N] in x's dtype, in memory of its own."""
Backward = Callable[[Tensor, Rows, Tensor, Rows, Tensor], tuple[Tensor, Rows, Tensor]]
"""(d [R', N] of the first rows of out, the gradients of its last R - R' rows, x, ys, W) -> (d_x [K, N], one for each of
ys, d_W [R, C] fp32)."""
TokenForward = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""(x [K, T, D], y [T, D] or None, W [R, C, T] fp32) -> out [R, T, D] in x's dtype, in memory of its own."""
TokenBackward = Callable[[Tensor, Tensor, Tensor | None, Tensor], tuple[Tensor, Tensor | None, Tensor]]
"""(d_out [R, T, D], x, y, W) -> (d_x [K, T, D], d_y [T, D] or None, d_W [R, C, T] fp32)."""
TokenWrite = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x [K, T, D], y [T, D], g [K, T] fp32) -> x + g y, [K, T, D] in x's dtype: the pass where blocks are not mixed. Its
derivative is a `TokenBackward` of y alone."""
Project = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x [K, T, D], Q [N, K*D]) -> (Q x [N, T], sums of squares of x [T]), in Q's dtype, at least fp32."""
ProjectBackward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, "Reads | None"], Tensor]
"""(d_x [K, T, D], x, Q, d of products [N, T], d of squares [T], (r [K, T], d_u [T, D]) where u = r x was read) -> d_Q.
d_x is contiguous; Q^T d_products + 2 d_squares x + r d_u is added to it in place."""
Reads = tuple[Tensor, Tensor]
Dots = Callable[[Tensor, Tensor], Tensor]
"""(x [K, T, D], u [T, D]) -> x . u, [K, T], at least fp32: the derivative of a read by its weights."""
Sinkhorn = Callable[[Tensor, int, float], Tensor]
"""(softmax over dimension 1 of logits [K, K, T], iterations, eps) -> comb [K, K, T] (`altup.sinkhorn`)."""
SinkhornBackward = Callable[[Tensor, Tensor, int, float], Tensor]
"""(d_comb, softmax, iterations, eps) -> the gradient of the logits."""


@dataclass(frozen=True)
class Kernel:
    """One implementation of the pass and of its derivative, with one matrix W for all tokens and with one for each, and
    of what computes the latter."""

    name: str
    forward: Forward
    backward: Backward
    token_forward: TokenForward
    token_backward: TokenBackward
    token_write: TokenWrite
    project: Project
    project_backward: ProjectBackward
    dots: Dots
    sinkhorn: Sinkhorn
    sinkhorn_backward: SinkhornBackward


def kernel(name: str, device: torch.device) -> Kernel:
    """The implementation called `name`: torch, compile, triton, or auto (triton on a GPU, torch elsewhere)."""
    if name == "auto":
        name = "triton" if device.type == "cuda" else "torch"
    # The fused ones load a compiler: only when asked for.
    columns, tokens, weights = (importlib.import_module(f"altup_moe.altup.kernels.{part}") for part in MODULES[name])
    return Kernel(
        name,
        columns.forward,
        columns.backward,
        tokens.token_forward,
        tokens.token_backward,
        tokens.token_write,
        weights.project,
        weights.project_backward,
        weights.dots,
        weights.sinkhorn,
        weights.sinkhorn_backward,
    )


MODULES = {
    "torch": ("plain", "plain", "plain_weights"),
    "compile": ("compiled", "compiled_tokens", "compiled_weights"),
    "triton": ("triton_kernels", "triton_tokens", "plain_weights"),
}
"""Files of the implementations: with one matrix for all tokens, with one for each, and what computes the latter."""
PLAIN = kernel("torch", torch.device("cpu"))
"""The definition, for any device."""
