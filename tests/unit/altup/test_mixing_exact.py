"""Reading and mixing against the literal form in float64, in any shape; what they do with memory and half types.

The literal form runs in float64, so every difference seen is the code's own rounding. (The code computes in fp32
whatever it is given, so finite differences in float64, torch's gradcheck, could not be told from that rounding.)
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import mix_and_write, read
from altup_moe.altup.shape import stream_width
from altup_moe.altup.variants import VARIANTS
from tests.variants import STATIC, initial

TORCH = kernel("torch", torch.device("cpu"))
TOLERANCE = 1e-6
"""Largest L2 error of the output or of one gradient, relative to its norm (or to 1, the size of one term).

A coefficient's gradient is one sum over all tokens and features, and may cancel to nearly nothing: it is measured
against the norm of what is summed (the output's, as the probe's entries are about 1) where that is larger."""


def literal(variant: str, x_KSBD: Tensor, j: int, c: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The next stream, as the paper says it, block by block."""
    blocks = list(x_KSBD)
    if variant == "round_robin":
        y = layer(sum(r * x for r, x in zip(c["read"], blocks, strict=True)), weight)
        return torch.stack([x + c["scale"] * y if i == j else x for i, x in enumerate(blocks)])
    if variant == "hc":
        u = sum(r * x for r, x in zip(c["read"], blocks, strict=True))
        mixed = [sum(a * x for a, x in zip(row, blocks, strict=True)) for row in c["mix"]]
        y = layer(u, weight)
        return torch.stack([m + g * (y - u) for m, g in zip(mixed, c["write"], strict=True)])
    if "wide_residual" in variant:
        u = sum(torch.sigmoid(r) * x for r, x in zip(c["read"], blocks, strict=True))
        forgotten = 0.1 * torch.sigmoid(-c["keep"] - math.log(99)) if "keep" in c else torch.zeros(len(blocks))
        added = layer(u, weight) - u
        steps = zip(blocks, forgotten, c["write"], strict=True)
        return torch.stack([x - f * x + 2 * torch.sigmoid(g) * added for x, f, g in steps])
    predicted = [sum(p * x for p, x in zip(row, blocks, strict=True)) for row in c["predict"]]
    y = layer(blocks[j] if variant == "altup" else predicted[j], weight)
    return torch.stack([p + g * (y - predicted[j]) for p, g in zip(predicted, c["correct"], strict=True)])


def layer(u: Tensor, weight: Tensor) -> Tensor:
    """A small nonlinear layer with a residual of its own."""
    return u + torch.tanh(u @ weight)


def worst_error(variant: str, width: int, j: int, shape: tuple[int, int, int], seed: int) -> float:
    """Largest error of the output and of the gradients of X, the layer's weight and every coefficient."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    start = initial(variant, width, j)
    values = {"x": randn(width, *shape), "weight": randn(shape[2], shape[2]) / shape[2] ** 0.5}
    values |= {name: value + 0.5 * randn(*value.shape) for name, value in start.items()}
    probe = randn(width, *shape)

    def results(dtype: torch.dtype, form) -> list[Tensor]:
        leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in values.items()}
        out = form(leaves)
        gradients = torch.autograd.grad((out * probe.to(dtype)).sum(), list(leaves.values()))
        return [out.detach().double(), *(gradient.double() for gradient in gradients)]

    def ours(leaves: dict[str, Tensor]) -> Tensor:
        mixing = VARIANTS[variant].mixing(j, leaves)
        stream, u = read(leaves["x"].view(width * shape[0], *shape[1:]), mixing.read, width)
        assert u.shape == shape
        y = mixing.written(u, layer(u, leaves["weight"]))
        return mix_and_write(stream, y, mixing, TORCH).view_as(leaves["x"])

    got = results(torch.float32, ours)
    wanted = results(torch.float64, lambda leaves: literal(variant, leaves["x"], j, leaves, leaves["weight"]))
    floors = [1.0, 1.0, 1.0, *(max(1.0, wanted[0].norm().item()) for _ in start)]
    return max(
        (g - w).norm().item() / max(w.norm().item(), floor) for g, w, floor in zip(got, wanted, floors, strict=True)
    )


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("variant", STATIC)
def test_equals_the_literal_form(variant: str, width: int) -> None:
    """20 random asymmetric sets of coefficients, all blocks in turn."""
    errors = [worst_error(variant, width, seed % width, (3, 2, 5), seed) for seed in range(20)]
    assert max(errors) < TOLERANCE


@settings(max_examples=150)
@given(data=st.data(), variant=st.sampled_from(sorted(STATIC)), width=st.integers(1, 8))
def test_equals_the_literal_form_in_any_shape(data: st.DataObject, variant: str, width: int) -> None:
    """Streams of a few numbers have nothing that rounding averages out over, hence the factor."""
    j = data.draw(st.integers(0, width - 1), label="block")
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9)), label="S, B, D")
    assert worst_error(variant, width, j, shape, data.draw(st.integers(0, 2**31), label="seed")) < 3 * TOLERANCE


def test_altup_reads_the_old_block_and_gemma_the_predicted_one() -> None:
    c = {"predict": torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "correct": torch.ones(2)}
    stream = torch.tensor([3.0, 5.0]).view(2, 1, 1)
    assert read(stream, VARIANTS["altup"].mixing(0, c).read, 2)[1].item() == 3.0
    assert read(stream, VARIANTS["gemma"].mixing(0, c).read, 2)[1].item() == 13.0


@pytest.mark.parametrize("width", [2, 3, 8])
@pytest.mark.parametrize("variant", [name for name in STATIC if "wide_residual" not in name])
def test_first_step_on_equal_blocks(variant: str, width: int) -> None:
    """Initial coefficients on equal blocks: g = 1 brings F(x) to every block, round_robin adds it to one."""
    x, y = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    for j in range(width):
        mixing = VARIANTS[variant].mixing(j, initial(variant, width, j))
        stream, u = read(x.repeat(width, 1, 1), mixing.read, width)
        assert torch.equal(u, x)
        for k, block in enumerate(mix_and_write(stream, mixing.written(u, y), mixing, TORCH).view(width, 3, 2, 5)):
            expected = y if variant != "round_robin" else x + y if k == j else x
            torch.testing.assert_close(block, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", STATIC)
def test_bf16_stream_sums_coefficient_gradients_in_fp32(variant: str) -> None:
    """They are those of the same rounded numbers summed in fp32: rounded to bf16 they would be off by 1e-3."""
    # One draw: where the terms of a sum cancel, as now and then they do, its rounding is large beside it.
    generator = torch.Generator().manual_seed(0)
    x, probe = (torch.randn(128, 2, 16, generator=generator).bfloat16() for _ in range(2))
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        c = {name: value.requires_grad_() for name, value in initial(variant, 2, 1).items()}
        mixing = VARIANTS[variant].mixing(1, c)
        leaf = x.to(dtype, copy=True).requires_grad_()
        stream, u = read(leaf, mixing.read, 2)
        out = mix_and_write(
            stream, mixing.written(u, u * 2), mixing, TORCH
        )  # times two is exact in bf16: only sums differ
        assert out.dtype == u.dtype == dtype
        out.backward(probe.to(dtype))
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        assert {value.grad.dtype for value in c.values()} == {torch.float32}
        gradients.append({name: value.grad for name, value in c.items()})
    for name, exact in gradients[1].items():
        # What comes back through the layer is bf16 where the stream is, and only a weighted read looks at it.
        rounded = name == "read" or (variant, name) == ("gemma", "predict")
        # What a wide residual writes is y less its input, and the input is a rounded sum.
        limit = 2e-2 if rounded or (name == "write" and "wide_residual" in variant) else 1e-5
        assert (gradients[0][name] - exact).norm() < limit * exact.norm(), name


@pytest.mark.parametrize("variant", STATIC)
def test_neither_pass_writes_into_what_it_was_given(variant: str) -> None:
    mixing = VARIANTS[variant].mixing(0, initial(variant, 2, 0))
    x, grad = torch.randn(6, 2, 5, requires_grad=True), torch.randn(6, 2, 5)
    before, kept = x.detach().clone(), grad.clone()
    stream, u = read(x, mixing.read, 2)
    mix_and_write(stream, torch.tanh(u), mixing, TORCH).backward(grad)
    assert torch.equal(x.detach(), before)
    assert torch.equal(grad, kept)


def test_the_control_has_one_block() -> None:
    assert stream_width(4, "sum") == 1
    assert {stream_width(4, variant) for variant in STATIC} == {4}
