"""Grouped experts against autograd of the plain formula: every gradient, uneven and empty groups, blocks, buffers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.moe.activations import ACTIVATIONS
from altup_moe.moe.grouped import BLOCK, choose, grouped_mlp

HIDDEN, FFN = 16, 24
COUNTS = {
    "even": [6, 6, 6],
    "skewed": [11, 2, 5],
    "idle first": [0, 7, 4],
    "idle last": [4, 7, 0],
    "one takes all": [0, 9, 0],
    "one row": [1, 0, 0],
    "nothing": [0, 0, 0],
    "blocks": [2 * BLOCK + 3, 0, BLOCK],
}


def inputs(counts: list[int], dtype: torch.dtype) -> list[Tensor]:
    """Rows, probabilities (fp32, or fp64), fc1, fc2: leaves."""
    generator = torch.Generator().manual_seed(0)
    rows, experts = sum(counts), len(counts)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, p = leaf(rows, HIDDEN), leaf(rows).sigmoid()
    fc1, fc2 = leaf(experts * 2 * FFN, HIDDEN), leaf(experts * HIDDEN, FFN)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    return [t.to(d).requires_grad_() for t, d in ((x, dtype), (p, wide), (0.3 * fc1, dtype), (0.3 * fc2, dtype))]


def plain(x: Tensor, p: Tensor, fc1: Tensor, fc2: Tensor, counts: list[int], act: str = "silu") -> Tensor:
    """The formula, expert by expert."""
    out = []
    experts = len(counts)
    parts = zip(x.split(counts), p.split(counts), fc1.chunk(experts), fc2.chunk(experts), strict=True)
    for rows, probs, w1, w2 in parts:
        gate, up = F.linear(rows, w1).chunk(2, dim=1)
        out.append(F.linear(ACTIVATIONS[act](gate) * up * probs[:, None], w2))
    return torch.cat(out)


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Of a sum with uneven weights; y's gradient is not contiguous."""
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape[1], y.shape[0]).t()
    return list(torch.autograd.grad(y, leaves, weight))


@pytest.mark.parametrize("how", ["loop", "grouped_mm"])
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_outputs_and_gradients(act: str, name: str, how: str) -> None:
    counts = COUNTS[name]
    if how == "grouped_mm" and not sum(counts):
        pytest.skip("a CPU takes the loop")
    exact = inputs(counts, torch.float64)
    expected = plain(*exact, counts, act)
    # grouped_mm takes no fp64.
    dtype, tolerance = (torch.float64, 1e-12) if how == "loop" else (torch.float32, 2e-6)
    ours = inputs(counts, dtype)
    # Where the host does not need them, numbers of rows are a tensor.
    y = grouped_mlp(*ours, torch.tensor(counts) if (how, act) == ("grouped_mm", "silu") else counts, how, act)
    assert (y.double() - expected).norm() <= tolerance * expected.norm()
    for got, want in zip(gradients(y, ours), gradients(expected, exact), strict=True):
        assert (got.double() - want).norm() <= tolerance * want.norm()


def test_experts_without_rows_have_gradients_of_zero() -> None:
    counts = COUNTS["one takes all"]
    leaves = inputs(counts, torch.float32)
    grouped_mlp(*leaves, counts, "loop").sum().backward()
    for weight in leaves[2:]:
        first, second, third = weight.grad.chunk(3)
        assert not first.any()
        assert second.any()
        assert not third.any()


@pytest.mark.parametrize("name", ["skewed", "idle first", "blocks"])
def test_gradients_are_added_to_megatrons_buffer(name: str) -> None:
    """Two passes add up, on top of what is there; autograd's own gradient is not to be used."""
    counts = COUNTS[name]
    ours, exact = inputs(counts, torch.float32), inputs(counts, torch.float64)
    for weight in ours[2:]:
        weight.main_grad, weight.grad_added_to_main_grad = torch.ones_like(weight), False
    for _ in range(2):
        grouped_mlp(*ours, counts, "loop").sum().backward()
    plain(*exact, counts).sum().backward()
    for weight, want in zip(ours[2:], exact[2:], strict=True):
        assert weight.grad_added_to_main_grad
        assert (weight.main_grad.double() - 1 - 2 * want.grad).norm() <= 1e-5 * want.grad.norm()


def test_a_buffer_of_another_type_is_left_to_megatron() -> None:
    counts = COUNTS["skewed"]
    ours = inputs(counts, torch.bfloat16)
    for weight in ours[2:]:
        weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight, dtype=torch.float32), False
    grouped_mlp(*ours, counts, "loop").sum().backward()
    for weight in ours[2:]:
        assert not weight.grad_added_to_main_grad
        assert not weight.main_grad.any()
        assert weight.grad.any()


@pytest.mark.parametrize("how", ["loop", "grouped_mm"])
def test_bf16(how: str) -> None:
    counts = COUNTS["skewed"]
    exact, ours = inputs(counts, torch.float64), inputs(counts, torch.bfloat16)
    expected = plain(*exact, counts)
    y = grouped_mlp(*ours, counts, how)
    assert y.dtype == torch.bfloat16
    assert (y.double() - expected).norm() < 2e-2 * expected.norm()
    for got, want in zip(gradients(y, ours), gradients(expected, exact), strict=True):
        assert (got.double() - want).norm() < 3e-2 * want.norm()


def test_the_rule() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose(cpu, torch.float32, 256, 384) == choose(cpu, torch.bfloat16, 256, 384) == "loop"
    assert choose(gpu, torch.bfloat16, 256, 384) == "grouped_mm"
    # Types and strides that the kernel does not take.
    assert choose(gpu, torch.float32, 256, 384) == "loop"
    assert choose(gpu, torch.bfloat16, 256, 380) == "loop"
