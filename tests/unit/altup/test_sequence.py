"""Sequence-AltUp's pure functions: the paper's formulas at every position, and no position sees a later one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altup_moe.altup.sequence import all_padding, initial_coefficients, pick, place, pools
from altup_moe.altup.shape import SEQUENCE_COEFFICIENTS

METHODS = ("altup", "stride_and_skip", "average_pool")
COEFFICIENTS = {"predict": torch.tensor([0.7, -0.4]), "correct": torch.tensor([1.3])}
shapes = given(
    method=st.sampled_from(METHODS), causal=st.booleans(), stride=st.integers(2, 6), length=st.integers(1, 17)
)
quick = settings(max_examples=120, deadline=None, derandomize=True)


def tokens(length: int, batch: int = 2, width: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, batch, width, generator=generator, dtype=torch.float64)


def mixes_earlier(u: Tensor) -> Tensor:
    """A layer in which each position hears all before it."""
    return u.sin() + 0.5 * u.cumsum(0)


def mixes_all(u: Tensor) -> Tensor:
    """A layer in which each position hears all."""
    return u.sin() + u.mean(0)


def strided(x: Tensor, method: str, stride: int, causal: bool, layer=mixes_earlier) -> Tensor:
    u = pick(x, method, stride, causal)
    return place(x, u, layer(u), method, stride, COEFFICIENTS)


def by_position(x: Tensor, method: str, stride: int, causal: bool, layer=mixes_earlier) -> Tensor:
    """The table of `altup.sequence`, one position after another."""
    length = len(x)
    anchors = range(0, length, stride)
    u = x[list(anchors)]
    if method == "average_pool":
        ends = [(max(0, a - stride + 1), a + 1) if causal else (a, min(a + stride, length)) for a in anchors]
        u = torch.stack([x[first:stop].mean(0) for first, stop in ends])
    y = layer(u)
    (a1, a2), b = COEFFICIENTS["predict"].double(), COEFFICIENTS["correct"].double()
    out = []
    for i in range(length):
        a = i // stride * stride
        if method == "altup":
            predicted, predicted_anchor = a1 * x[i] + a2 * x[a], a1 * x[a] + a2 * x[a]
            out.append(predicted + b * (y[i // stride] - predicted_anchor))
        elif method == "stride_and_skip":
            out.append(y[i // stride] if i == a else x[i])
        else:
            out.append(y[i // stride])
    return torch.stack(out)


@quick
@shapes
def test_is_the_formula_at_every_position(method: str, causal: bool, stride: int, length: int) -> None:
    x, layer = tokens(length), mixes_earlier if causal else mixes_all
    got = strided(x, method, stride, causal, layer)
    # Coefficients are fp32, and 0.7 of them is not 0.7.
    torch.testing.assert_close(got, by_position(x, method, stride, causal, layer), rtol=1e-6, atol=1e-6)


@quick
@shapes
def test_no_position_sees_a_later_one(method: str, causal: bool, stride: int, length: int) -> None:
    x = tokens(length).requires_grad_()
    y = strided(x, method, stride, causal=True)
    for i in range(length):
        (gradient,) = torch.autograd.grad(y[i].sum(), x, retain_graph=True)
        assert not gradient[i + 1 :].any()
        assert gradient[: i + 1].any()


def test_a_pool_that_is_not_causal_sees_its_whole_window() -> None:
    x = tokens(8).requires_grad_()
    y = strided(x, "average_pool", 4, causal=False)
    (gradient,) = torch.autograd.grad(y[0].sum(), x)
    assert gradient[3].any()
    assert not gradient[4:].any()


@quick
@given(stride=st.integers(2, 6), length=st.integers(1, 17), tokens_at=st.lists(st.booleans(), min_size=34, max_size=34))
def test_means_are_those_of_tokens_and_of_paddings_where_there_are_none(
    stride: int, length: int, tokens_at: list[bool]
) -> None:
    x, padding = tokens(length), ~torch.tensor(tokens_at).view(17, 2)[:length]
    got, windows = pick(x, "average_pool", stride, False, padding=padding), range(0, length, stride)
    for w, a in enumerate(windows):
        for b in (0, 1):
            window, kept = x[a : a + stride, b], ~padding[a : a + stride, b]
            torch.testing.assert_close(got[w, b], (window[kept] if kept.any() else window).mean(0))
            assert all_padding(padding.T, stride)[b, w] == (not kept.any())
    for method in ("altup", "stride_and_skip"):
        assert torch.equal(pick(x, method, stride, False, padding=padding), x[::stride])


@quick
@given(method=st.sampled_from(METHODS), stride=st.integers(2, 5), slices=st.integers(1, 4), windows=st.integers(1, 3))
def test_slices_are_slices_of_the_whole(method: str, stride: int, slices: int, windows: int) -> None:
    """As tensor ranks hold them: each begins at an anchor and knows the tokens before it."""
    x = tokens(stride * windows * slices)
    parts = x.chunk(slices)
    assert pools(method, True) == (method == "average_pool")
    before = [None, *(part[1 - stride :] for part in parts[:-1])]
    got = [pick(part, method, stride, True, b) for part, b in zip(parts, before, strict=True)]
    torch.testing.assert_close(torch.cat(got), pick(x, method, stride, True))


def test_by_hand() -> None:
    """Six tokens, stride 3, F = 10 u: anchors 1 and 4."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(6, 1, 1)

    def run(method: str, causal: bool = True, coefficients=COEFFICIENTS) -> list[float]:
        u = pick(x, method, 3, causal)
        return place(x, u, 10 * u, method, 3, coefficients).flatten().tolist()

    halves = {"predict": torch.tensor([0.5, 0.25]), "correct": torch.tensor([2.0])}
    # y^ = 0.75 1.25 1.75 | 3 3.5 4; the corrections are 2 (10 - 0.75) and 2 (40 - 3).
    assert run("altup", coefficients=halves) == [19.25, 19.75, 20.25, 77.0, 77.5, 78.0]
    assert run("stride_and_skip") == [10.0, 2.0, 3.0, 40.0, 5.0, 6.0]
    assert run("average_pool", causal=False) == [20.0, 20.0, 20.0, 50.0, 50.0, 50.0]
    assert run("average_pool") == [10.0, 10.0, 10.0, 30.0, 30.0, 30.0]


def test_new_coefficients_give_every_token_its_anchors_update() -> None:
    x = tokens(8)
    u = pick(x, "altup", 4, True)
    y = mixes_earlier(u)
    got = place(x, u, y, "altup", 4, initial_coefficients("altup"))
    torch.testing.assert_close(got, x + (y - u).repeat_interleave(4, dim=0))
    torch.testing.assert_close(got[::4], y)


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_shapes_is_that_of_initial_values(method: str) -> None:
    initial = initial_coefficients(method)
    assert {name: tuple(value.shape) for name, value in initial.items()} == SEQUENCE_COEFFICIENTS[method]
    assert all(value.dtype == torch.float32 for value in initial.values())


def test_pooling_layer_by_layer_is_pooling_once() -> None:
    """The paper's average pooling: pool, some layers, spread. Its form a layer is the same function."""
    x = tokens(12)
    u = pick(x, "average_pool", 4, causal=False)
    once = mixes_all(mixes_all(mixes_all(u))).repeat_interleave(4, dim=0)
    layers = x
    for _ in range(3):
        layers = strided(layers, "average_pool", 4, False, mixes_all)
    torch.testing.assert_close(layers, once)


def test_coefficients_and_their_gradients_stay_single_precision() -> None:
    c = {name: value.clone().requires_grad_() for name, value in COEFFICIENTS.items()}
    x = tokens(64, width=32)

    def gradients(dtype: torch.dtype) -> Tensor:
        xd = x.to(dtype)
        u = pick(xd, "altup", 4, True)
        y = place(xd, u, u.sin(), "altup", 4, c)
        assert y.dtype == dtype
        found = torch.autograd.grad(y.to(torch.float64).square().sum(), list(c.values()))
        assert all(g.dtype == torch.float32 for g in found)
        return torch.cat(found)

    half, exact = gradients(torch.bfloat16), gradients(torch.float64)
    assert (half - exact).norm() < 3e-3 * exact.norm()
