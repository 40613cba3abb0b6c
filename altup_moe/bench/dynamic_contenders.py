"""What takes turns in `altup-moe bench mixing --dynamic`: one small matrix for each token.

A pass takes W [K + 1, K + 1, T] as given. A whole step is DeepSeek-V4's around one branch: from the stream x it
computes the coefficients (norm, projection, sigmoid, Sinkhorn), reads the branch's input u = pre x, and from the
branch's output y makes the next stream, comb^T x + post y. Here it runs with our passes; as transformers' decoder layer
has it; and as hyper-connections from PyPI has it, constrained (mHC) and not, both as they are and by torch.compile.
Each has the stream in its own layout, and gradients of u, of the next stream, and of its parameters.

Shape legend: K blocks, T tokens, D width of a block, Q = (2 + K) K coefficients of a token, R rows, C columns of W.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import Kernel, kernel
from altup_moe.altup.per_token import mhc
from altup_moe.altup.token_mixing import mix_and_write
from altup_moe.bench.mixing_contenders import CPU, MixingContender, by_autograd, copy_of
from altup_moe.bench.mixing_rivals import Update
from altup_moe.bench.options import MixingBench

WHOLE = ", whole step"
COMPILED = ", compiled"
DEEPSEEK = "DeepseekV4HyperConnection"
HYPER_NAMES = {"hyper-connections mHC": "mHC", "hyper-connections": "HyperConnections"}
"""Contender -> class of the package."""
STEPS = tuple(name + how for name in (DEEPSEEK, *HYPER_NAMES) for how in ("", COMPILED))
"""Others' whole steps, as they are and by torch.compile."""


def dynamic_contenders(
    bench: MixingBench, width: int, exponent: int, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, MixingContender]:
    """All contenders of one setting on the same numbers, the copy first. Ours on a GPU: triton."""
    generator, n = torch.Generator().manual_seed(0), 2**exponent
    shape = (n // bench.hidden_size, bench.hidden_size)

    def randn(*lengths: int) -> Tensor:
        return torch.randn(*lengths, generator=generator).to(device)

    x_KTD, y_TD, d_RTD = (randn(*first, *shape).to(dtype) for first in ((width,), (), (width + 1,)))
    w_RCT = randn(width + 1, width + 1, shape[0])
    found = {"copy": copy_of(width, n, dtype, device)}
    ours = [kernel(name, device) for name in (bench.kernels if device.type == "cpu" else ("triton",))]
    for k in ours:
        found[k.name] = _pass(k, d_RTD, x_KTD, y_TD, w_RCT)
    d_x, d_u = d_RTD[:width], d_RTD[width]
    for k in ours:
        update, parameters = our_step(k, width, bench.hidden_size, device)
        found[k.name + WHOLE] = by_autograd(update, parameters, x_KTD, y_TD, [d_u, d_x])
    if bench.rivals:
        update, parameters = deepseek_step(width, bench.hidden_size, device)
        by_token = x_KTD.transpose(0, 1)[None].contiguous(), y_TD[None]
        grads = [d_u[None], d_x.transpose(0, 1)[None].contiguous()]
        found |= _also_compiled(bench, DEEPSEEK, update, parameters, *by_token, grads)
        for rival, (update, parameters) in hyper_steps(width, bench.hidden_size, dtype, device).items():
            found |= _also_compiled(bench, rival, update, parameters, x_KTD, y_TD[None], [d_u[None], d_x])
    return found


def _also_compiled(
    bench: MixingBench, name: str, update: Update, parameters: list[Tensor], x: Tensor, y: Tensor, grads: list[Tensor]
) -> dict[str, MixingContender]:
    """A rival as it is, and where our compiled one is measured by torch.compile too."""
    found = {name: by_autograd(update, parameters, x, y, grads)}
    if "compile" in bench.kernels:
        from altup_moe.device.compiled_functions import compiled_often  # 1.5 s

        # One compilation for each setting. Past dynamo's limit of 8 it would run as it is, and nobody would know.
        compiled = compiled_often(update, dynamic=False)
        found[name + COMPILED] = by_autograd(compiled, parameters, x, y, grads)
    return found


def _pass(k: Kernel, d_RTD: Tensor, x_KTD: Tensor, y_TD: Tensor, w_RCT: Tensor) -> MixingContender:
    def forward() -> object:
        return k.token_forward(x_KTD, y_TD, w_RCT)

    return MixingContender(forward, lambda: (forward(), k.token_backward(d_RTD, x_KTD, y_TD, w_RCT)))


def _deepseek(width: int, hidden_size: int, device: torch.device) -> Any:
    """DeepSeek's module, its parameters drawn so that no coefficient is at a bound. A forward pass needs no more."""
    from transformers.models.deepseek_v4 import DeepseekV4Config
    from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

    module = DeepseekV4HyperConnection(DeepseekV4Config(hidden_size=hidden_size, hc_mult=width))
    generator = torch.Generator().manual_seed(0)
    for parameter, size in ((module.fn, (width * hidden_size) ** -0.5), (module.base, 1.0), (module.scale, 1.0)):
        parameter.data = size * torch.randn(parameter.shape, generator=generator)
    return module.to(device)


def our_step(k: Kernel, width: int, hidden_size: int, device: torch.device = CPU) -> tuple[Update, list[Tensor]]:
    """(x [K, T, D], y [T, D]) -> [u [T, D], the next stream [K, T, D]], with DeepSeek's parameters."""
    module = _deepseek(width, hidden_size, device)
    sizes, eps = [width, width, width * width], module.input_norm.eps

    def update(x_KTD: Tensor, y_TD: Tensor) -> list[Tensor]:
        read_bias, write_bias, mix_bias = module.base.split(sizes)
        c = {"project": module.fn, "read_bias": read_bias, "write_bias": write_bias, "scale": module.scale}
        found = mhc(x_KTD, {**c, "mix_bias": mix_bias.view(width, width)}, eps, k)
        assert found.u is not None
        # A token is a position of one sample: [K, T, D] is the stream [K*T, 1, D].
        stream, y_T1D = found.stream.reshape(-1, 1, hidden_size), y_TD[:, None]
        writing = found.writing()
        return [found.u, mix_and_write(stream, y_T1D, writing.mix, writing.write, k).view_as(x_KTD)]

    return update, list(module.parameters())


def deepseek_step(width: int, hidden_size: int, device: torch.device = CPU) -> tuple[Update, list[Tensor]]:
    """(x [1, T, K, D], y [1, T, D]) -> [u [1, T, D], the next stream], as `DeepseekV4DecoderLayer.forward` does it."""
    module = _deepseek(width, hidden_size, device)

    def update(x: Tensor, y: Tensor) -> list[Tensor]:
        post, comb, u = module(x)
        mixed = torch.matmul(comb.to(x.dtype).transpose(-1, -2), x)
        return [u, post.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2) + mixed]

    return update, list(module.parameters())


def hyper_steps(
    width: int, hidden_size: int, dtype: torch.dtype, device: torch.device = CPU
) -> dict[str, tuple[Update, list[Tensor]]]:
    """(x [K, T, D], y [1, T, D]) -> [u [1, T, D], the next stream], by the package's classes, if it is installed."""
    if importlib.util.find_spec("hyper_connections") is None:
        return {}
    import hyper_connections

    def step(name: str) -> tuple[Update, list[Tensor]]:
        module = getattr(hyper_connections, name)(width, dim=hidden_size, layer_index=0).to(device, dtype)

        def update(x: Tensor, y: Tensor) -> list[Tensor]:
            u, add_residual = module(x)
            return [u, add_residual(y)]

        return update, list(module.parameters())

    return {contender: step(name) for contender, name in HYPER_NAMES.items()}
