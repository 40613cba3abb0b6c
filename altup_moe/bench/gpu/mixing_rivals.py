"""Other code that makes the next stream from a stream and a layer's output, on a GPU, where it is installed.

Each maker takes our blocks x [K, T, D], a layer's output y [T, D] and the next stream's gradient d [K, T, D], puts them
into the layout that its library wants, and returns (forward, backward): calls that do the work once. Coefficients are
given, as to ours; transformers' Gemma computes its own. Interfaces as read in Liger 0.8.5 (transformers/functional.py),
TileKernels 2.1.0 (mhc/post_kernel.py), Transformer Engine 2.20 (pytorch/triton/mhc.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from altup_moe.bench.gpu.timing import Call

Maker = Callable[[Tensor, Tensor, Tensor], tuple[Call, Call]]


def _by_autograd(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor, parameters: Sequence[Tensor] = ()
) -> tuple[Call, Call]:
    """Forward without a graph; backward, through a graph that is kept, to the inputs and to parameters beside them."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = function(*leaves)
    wanted = [*leaves, *parameters]

    def forward() -> Any:
        with torch.no_grad():
            return function(*inputs)

    return forward, lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def _coefficients(x_KTD: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix [T, K, K] that mixes, column [T, K] that writes), fp32."""
    width, tokens, _ = x_KTD.shape
    mix = torch.rand(tokens, width, width, device=x_KTD.device).softmax(-1)
    return mix, torch.rand(tokens, width, device=x_KTD.device)


def _by_token(x_KTD: Tensor) -> Tensor:
    return x_KTD.transpose(0, 1).contiguous()


def _einsum(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    """torch's own, with one matrix for all tokens, in the stream's type."""
    width = x.shape[0]
    mix, write = torch.rand(width, width, device=x.device).to(x), torch.rand(width, device=x.device).to(x)
    return _by_autograd(
        lambda x, y, m, g: torch.einsum("ij,jtd->itd", m, x) + torch.einsum("i,td->itd", g, y), [x, y, mix, write], d
    )


def _gemma(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    """transformers' dynamic AltUp: its router computes the coefficients of every token as well."""
    from transformers import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp

    config = Gemma3nTextConfig(hidden_size=x.shape[2], altup_num_inputs=x.shape[0], altup_active_idx=0)
    module = Gemma3nTextAltUp(config).to(x.device, x.dtype)
    # The scale of the corrected output belongs to another part of Gemma's layer.
    parameters = [one for name, one in module.named_parameters() if name != "correct_output_scale"]
    inputs = [x[:, None], y[None]]
    return _by_autograd(lambda x, y: module.correct(module.predict(x), y), inputs, d[:, None], parameters)


def _deepseek(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    """What transformers' DeepSeek-V4 layer does after a branch, its matrices given."""
    mix, write = _coefficients(x)

    def function(x: Tensor, y: Tensor, mix: Tensor, write: Tensor) -> Tensor:
        mixed = torch.matmul(mix.to(x.dtype).transpose(-1, -2), x)
        return write.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2) + mixed

    return _by_autograd(function, [_by_token(x), y, mix, write], _by_token(d))


def _liger(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    from liger_kernel.transformers.functional import liger_mhc_post_res

    mix, write = _coefficients(x)
    return _by_autograd(
        lambda x, y, write, mix: liger_mhc_post_res(x, y, write, mix), [_by_token(x), y, write, mix], _by_token(d)
    )


def _tile_kernels(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    from tile_kernels.mhc import mhc_post_bwd, mhc_post_fwd

    mix, write = _coefficients(x)
    given = y[None], _by_token(x)[None], write[None, ..., None].contiguous(), mix[None]
    grad = _by_token(d)[None]
    return lambda: mhc_post_fwd(*given), lambda: mhc_post_bwd(*given, grad)


def _transformer_engine(x: Tensor, y: Tensor, d: Tensor) -> tuple[Call, Call]:
    """Its stream is [S, B, D, K]."""
    from transformer_engine.pytorch.triton.mhc import mhc_fused_expand_combine

    width = x.shape[0]
    mix, write = _coefficients(x)
    last, grad = (one.permute(1, 2, 0).contiguous()[:, None] for one in (x, d))
    return _by_autograd(
        lambda y, write, x, mix: mhc_fused_expand_combine(y, None, write, x, mix, width),
        [y[:, None].contiguous(), write[:, None], last, mix[:, None]],
        grad,
    )


RIVALS: dict[str, tuple[str, Maker]] = {
    "torch's einsum": ("torch", _einsum),
    "transformers' Gemma3nTextAltUp": ("transformers", _gemma),
    "transformers' DeepSeek-V4 layer": ("transformers", _deepseek),
    "Liger": ("liger_kernel", _liger),
    "TileKernels": ("tile_kernels", _tile_kernels),
    "Transformer Engine": ("transformer_engine", _transformer_engine),
}
"""Name -> (package that must be there, maker)."""
