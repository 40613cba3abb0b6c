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


@dataclass(frozen=True)
class Kernel:
    """One implementation of the pass and of its derivative, with one matrix W for all tokens and with one for each."""

    name: str
    forward: Forward
    backward: Backward
    token_forward: TokenForward
    token_backward: TokenBackward
    token_write: TokenWrite


def kernel(name: str, device: torch.device) -> Kernel:
    """The implementation called `name`: torch, compile, triton, or auto (triton on a GPU, torch elsewhere)."""
    if name == "auto":
        name = "triton" if device.type == "cuda" else "torch"
    # The fused ones load a compiler: only when asked for.
    columns, tokens = (importlib.import_module(f"altup_moe.altup.kernels.{module}") for module in MODULES[name])
    token = (tokens.token_forward, tokens.token_backward, tokens.token_write)
    return Kernel(name, columns.forward, columns.backward, *token)


MODULES = {
    "torch": ("plain", "plain"),
    "compile": ("compiled", "compiled_tokens"),
    "triton": ("triton_kernels", "triton_tokens"),
}
"""Files of the implementations: with one matrix for all tokens, and with one for each."""
