"""Streams against independent code: modules of the published models in transformers, and PyPI's hyper-connections.

The same weights and the same stream go in; inputs of the branch, the next stream and every gradient come out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hyper_connections import HyperConnections
from torch import Tensor, nn
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as deepseek
from transformers.models.glm5_next import modeling_glm5_next as glm
from transformers.models.hy_v4 import modeling_hy_v4 as hunyuan
from transformers.models.qwen4_exp import modeling_qwen4_exp as qwen

from altup_moe.altup import mixing as mixing_passes
from altup_moe.altup import per_token, token_mixing
from altup_moe.altup.kernels import kernel
from altup_moe.altup.variants import VARIANTS

S, B, D, EPS = 5, 2, 24, 1e-5
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
Coefficients = dict[str, Tensor]


def settings(width: int) -> SimpleNamespace:
    """What the modules read of their models' configurations."""
    return SimpleNamespace(
        hc_mult=width, hc_sinkhorn_iters=20, hc_eps=1e-6, hc_magnitude=2.0, hc_count=width, hc_lowrank=D // 8,
        hidden_size=D, rms_norm_eps=EPS,
    )  # fmt: skip


def random_coefficients(rows: dict, width: int, dtype: torch.dtype) -> Coefficients:
    """Values that are far from their starts."""
    return {
        name: torch.randn(row.sizes(width, D), dtype=dtype) * (0.1 if "D" in "".join(map(str, row.shape)) else 1.0)
        for name, row in rows.items()
    }


def hyper_weights(c: Coefficients) -> dict[str, Tensor]:
    """Ours by DeepSeek's and Hunyuan's names."""
    biases = [c[name].flatten() for name in ("read_bias", "write_bias", "mix_bias") if name in c]
    return {"fn": c["project"], "base": torch.cat(biases), "scale": c["scale"]}


def head_weights(c: Coefficients) -> dict[str, Tensor]:
    """Those of a head."""
    return {f"hc_{name}": value for name, value in hyper_weights(c).items()}


def gate_weights(c: Coefficients) -> dict[str, Tensor]:
    """Ours by Qwen's names; its norm's weights are offsets from 1."""
    named = {
        "hc_norm.weight": c["norm"] - 1,
        "input_mix_weight_down.weight": c["gate_down"],
        "input_mix_weight_up.weight": c["gate_up"],
    }
    return named | ({"block_inject_weight.weight": c["inject"]} if "inject" in c else {})


def branch(u: Tensor) -> Tensor:
    """Some function of a branch's input."""
    return torch.tanh(u) * 1.5 - u.flip(-1)


def published_deepseek(module: nn.Module, x_BSKD: Tensor) -> tuple[Tensor, Tensor]:
    """As DeepseekV4DecoderLayer calls it."""
    post, comb, u = module(x_BSKD)
    y = branch(u)
    return u, post.unsqueeze(-1) * y.unsqueeze(-2) + torch.matmul(comb.transpose(-1, -2), x_BSKD)


def published_hunyuan(module: nn.Module, x_BSKD: Tensor) -> tuple[Tensor, Tensor]:
    """As HYV4DecoderLayer calls it."""
    post, u = module(x_BSKD)
    return u, post.unsqueeze(-1) * branch(u).unsqueeze(-2) + x_BSKD


def published_qwen(module: nn.Module, x_BSKD: Tensor) -> tuple[Tensor, Tensor]:
    """As Qwen4ExpTextDecoderLayer calls it."""
    u, wide, weights = module(x_BSKD.flatten(2))
    out = wide + (branch(u).unsqueeze(-2) * weights.unsqueeze(-1)).flatten(-2)
    return u, out.unflatten(-1, x_BSKD.shape[2:])


def published_static(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """As the package's README calls it."""
    u, write = module(x)
    return u, write(branch(u))


CONNECTIONS = {
    "DeepSeek-V4": ("mhc", deepseek.DeepseekV4HyperConnection, hyper_weights, published_deepseek),
    "GLM-5-next": ("mhc", glm.Glm5NextTextHyperConnection, hyper_weights, published_deepseek),
    "Hunyuan V4": ("independent_hc", hunyuan.HYV4HyperConnection, hyper_weights, published_hunyuan),
    "Qwen4-exp": ("gated_residual", qwen.Qwen4ExpTextGatedResidual, gate_weights, published_qwen),
}
HEADS: dict[str, tuple[str, Callable, Callable]] = {
    "DeepSeek-V4": ("mhc", deepseek.DeepseekV4HyperHead, head_weights),
    "Hunyuan V4": ("independent_hc", hunyuan.HYV4HyperHead, head_weights),
    "Qwen4-exp": (
        "gated_residual",
        lambda config: qwen.Qwen4ExpTextGatedResidual(config, use_combine=False),
        gate_weights,
    ),
}


def to_float64(module: nn.Module, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> nn.Module:
    """The module with float64 weights; its casts to fp32 are left out while it runs."""
    if dtype is torch.float64:
        monkeypatch.setattr(Tensor, "float", lambda self: self)
    return module.to(dtype)


def our_step(variant: str, x: Tensor, c: Coefficients) -> tuple[Tensor, Tensor]:
    """(u [S, B, D], next stream [K*S, B, D]) with our functions."""
    width, code = len(x) // S, kernel("torch", torch.device("cpu"))
    row = {"mhc": per_token.mhc, "independent_hc": per_token.independent_hc}.get(variant, per_token.gated_residual)
    found = row(token_mixing.by_token(x, width), c, EPS)
    x = found.stream.view_as(x)
    u = found.u.view(S, B, D) if found.read is None else token_mixing.read(x, found.read, code)  # type: ignore[union-attr]
    writing = found.writing()
    return u, token_mixing.mix_and_write(x, branch(u), writing.mix, writing.write, code)


def by_sample(x: Tensor) -> Tensor:
    """[K*S, B, D] -> [B, S, K, D]."""
    return x.unflatten(0, (-1, S)).permute(2, 1, 0, 3).contiguous()  # DeepSeek takes views


def difference(got: Tensor, expected: Tensor) -> float:
    """Relative to the expected tensor's norm."""
    return ((got - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("model", CONNECTIONS)
def test_connections(model: str, width: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, build, names, call = CONNECTIONS[model]
    torch.manual_seed(width)
    c = {n: v.requires_grad_() for n, v in random_coefficients(VARIANTS[variant].coefficients, width, dtype).items()}
    x = torch.randn(width * S, B, D, dtype=dtype, requires_grad=True)
    weigh_u, weigh_x = torch.randn(S, B, D, dtype=dtype), torch.randn_like(x)
    u, out = our_step(variant, x, c)
    (ours := (u * weigh_u).sum() + (out * weigh_x).sum()).backward()
    mine = {name: value.grad for name, value in c.items()} | {"stream": x.grad}

    module = to_float64(build(settings(width)), monkeypatch, dtype)
    for value in (*c.values(), x):
        value.grad = None
    theirs_u, theirs = torch.func.functional_call(_Caller(module, call), _named(names(c)), (by_sample(x),))
    same = (theirs_u.transpose(0, 1) * weigh_u).sum() + (theirs * by_sample(weigh_x)).sum()
    same.backward()
    assert difference(u, theirs_u.transpose(0, 1)) <= TOLERANCE[dtype]
    assert difference(by_sample(out), theirs) <= TOLERANCE[dtype]
    assert ours.item() == pytest.approx(same.item(), rel=1e-3)
    for name, value in {**c, "stream": x}.items():
        assert difference(mine[name], value.grad) <= TOLERANCE[dtype], name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("model", HEADS)
def test_heads(model: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    variant, build, names = HEADS[model]
    torch.manual_seed(1)
    row = VARIANTS[variant]
    c = {name: value.requires_grad_() for name, value in random_coefficients(row.head, 4, dtype).items()}
    x, weigh = torch.randn(4 * S, B, D, dtype=dtype, requires_grad=True), torch.randn(S, B, D, dtype=dtype)
    collapse = per_token.gated_collapse if variant == "gated_residual" else per_token.read_collapse
    ours = collapse(token_mixing.by_token(x, 4), c, EPS).view(S, B, D)
    expected = torch.autograd.grad((ours * weigh).sum(), [*c.values(), x])
    module = to_float64(build(settings(4)), monkeypatch, dtype)
    stream = by_sample(x).flatten(2) if variant == "gated_residual" else by_sample(x)
    theirs = torch.func.functional_call(module, names(c), (stream,)).transpose(0, 1)
    assert difference(ours, theirs) <= TOLERANCE[dtype]
    for mine, same in zip(expected, torch.autograd.grad((theirs * weigh).sum(), [*c.values(), x]), strict=True):
        assert difference(mine, same) <= TOLERANCE[dtype]


@pytest.mark.parametrize("width", [2, 4, 8])
def test_static_hyper_connections(width: int) -> None:
    """PyPI's at their start: what computes a token's weights is 0. (It has no other of our designs in our form.)"""
    torch.manual_seed(width)
    c = {n: torch.randn(row.sizes(width, D), requires_grad=True) for n, row in VARIANTS["hc"].coefficients.items()}
    x, code = torch.randn(width * S, B, D, requires_grad=True), kernel("torch", torch.device("cpu"))
    weigh_u, weigh_x = torch.randn(S, B, D), torch.randn(width * S, B, D)
    mixing = VARIANTS["hc"].mixing(0, c, "branch")
    stream, u = mixing_passes.read(x, mixing.read, width)
    out = mixing_passes.mix_and_write(stream, branch(u), mixing, code)
    leaves = [*c.values(), x]
    mine = torch.autograd.grad((u * weigh_u).sum() + (out * weigh_x).sum(), leaves)

    module = HyperConnections(width, dim=D, layer_index=0)
    weights = {"static_alpha": torch.cat([c["read"][:, None], c["mix"].t()], dim=1), "static_beta": c["write"]}
    by_stream = by_sample(x).permute(0, 2, 1, 3).reshape(B * width, S, D)  # a sample's blocks follow each other
    u_same, theirs = torch.func.functional_call(_Caller(module, published_static), _named(weights), (by_stream,))
    u_same, theirs = u_same.transpose(0, 1), theirs.view(B, width, S, D).permute(1, 2, 0, 3).reshape(out.shape)
    same = torch.autograd.grad((u_same * weigh_u).sum() + (theirs * weigh_x).sum(), leaves)
    for got, expected in zip((u, out, *mine), (u_same, theirs, *same), strict=True):
        assert difference(got, expected) <= TOLERANCE[torch.float32]


class _Caller(nn.Module):
    """A module called in the way of its model's layer."""

    def __init__(self, module: nn.Module, call: Callable) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x_BSKD: Tensor) -> tuple[Tensor, Tensor]:
        return self.call(self.module, x_BSKD)


def _named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in weights.items()}
