"""Doubly stochastic matrices: DeepSeek-V4's numbers, and the derivative."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deepseek_v4 import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4HyperConnection

from altup_moe.altup.sinkhorn import sinkhorn

EPS = 1e-6
WIDTHS = [1, 2, 4, 8]


def logits(width: int, tokens: int, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return spread * torch.randn(width, width, tokens, generator=generator, dtype=torch.float64)


def by_autograd(logits_KKT: Tensor, iterations: int, eps: float) -> Tensor:
    comb = torch.softmax(logits_KKT, dim=1) + eps
    comb = comb / (comb.sum(0, keepdim=True) + eps)
    for _ in range(iterations - 1):
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        comb = comb / (comb.sum(0, keepdim=True) + eps)
    return comb


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("width", WIDTHS)
def test_derivative_is_the_slope(width: int, iterations: int) -> None:
    x = logits(width, 2).requires_grad_()
    # A large eps, so that where it is added matters.
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, iterations, 1e-2), x)


@pytest.mark.parametrize("eps", [EPS, 1e-2])
@pytest.mark.parametrize("width", WIDTHS)
def test_equals_autograd(width: int, eps: float) -> None:
    ours, plain = (logits(width, 33).requires_grad_() for _ in range(2))
    d = logits(width, 33, spread=1.0).flip(0)
    got, wanted = sinkhorn(ours, 20, eps), by_autograd(plain, 20, eps)
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    before = got.clone()
    (again,) = torch.autograd.grad(got, ours, d, retain_graph=True)
    assert torch.equal(again, torch.autograd.grad(got, ours, d)[0]), "what is kept is left alone"
    torch.testing.assert_close(again, torch.autograd.grad(wanted, plain, d)[0], rtol=0, atol=1e-12)
    assert torch.equal(got, before)


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_and_columns_sum_to_one(width: int) -> None:
    comb = sinkhorn(logits(width, 50, spread=1.0), 20, EPS)
    assert (comb > 0).all()
    torch.testing.assert_close(comb.sum(0), torch.ones_like(comb[0]), rtol=0, atol=2 * EPS)
    torch.testing.assert_close(comb.sum(1), torch.ones_like(comb[0]), rtol=0, atol=1e-4)


def test_saturated_logits_have_a_derivative() -> None:
    """A softmax that underflows in fp32: the derivative is a number, that of float64."""
    wide = logits(4, 20, spread=200.0)
    ours, plain = wide.float().requires_grad_(), wide.requires_grad_()
    d = logits(4, 20, spread=1.0).flip(0)
    (got,) = torch.autograd.grad(sinkhorn(ours, 20, EPS), ours, d.float())
    (wanted,) = torch.autograd.grad(by_autograd(plain, 20, EPS), plain, d)
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("width", [2, 4])
def test_equals_deepseeks(width: int) -> None:
    """The logits as DeepSeek's module makes them: norm, projection, scale and base; then its matrix."""
    config = DeepseekV4Config(hidden_size=16, hc_mult=width)
    module = DeepseekV4HyperConnection(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(2, 9, width, 16, generator=generator)
    with torch.no_grad():
        comb = module(x)[1]
        projected = F.linear(module.input_norm(x.flatten(2)), module.fn)[..., 2 * width :]
        wanted = projected * module.scale[2] + module.base[2 * width :]
        logits_KKT = wanted.flatten(0, 1).t().reshape(width, width, -1)
        got = sinkhorn(logits_KKT, config.hc_sinkhorn_iters, config.hc_eps)
    torch.testing.assert_close(got.movedim(-1, 0), comb.flatten(0, 1), rtol=0, atol=1e-6)
