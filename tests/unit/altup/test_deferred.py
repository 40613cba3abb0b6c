"""Several layers with deferred mixing against the literal predict, compute, correct in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Pending, Reading, catch_up, join, look_ahead, mix_and_write, read, write_back
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import VARIANTS, selected_block
from tests.unit.altup.test_mixing_exact import layer, literal
from tests.variants import STATIC, initial

TORCH = kernel("torch", torch.device("cpu"))
TOLERANCE = 3e-6
"""Largest L2 error relative to the norm of the result in float64, or for coefficients of what their sums are over.

Both forms lie up to 2.2e-6 away after five layers: fp32's own rounding."""


def deferred(
    stream: Tensor, mixings: list[Mixing], weights: list[Tensor], last: Reading | None, joined: bool = False
) -> Tensor:
    """Steps whose pass never sees their output: the stream, or what `last` reads of it. Joined: a pass for two."""
    width = mixings[0].write.numel()
    joins = [joined and index % 2 == 0 and index + 1 < len(mixings) for index in range(len(mixings))]

    def reading(index: int) -> Reading | None:
        if index == len(mixings):
            return last
        if not joins[index]:
            return Reading(mixings[index].read)
        after = mixings[index + 1].read
        row = torch.eye(width)[after] if isinstance(after, int) else after
        return Reading(mixings[index].read, through=row @ mixings[index].mix)

    blocks, u = read(stream, mixings[0].read, width)
    state: Pending | None = Pending(blocks)
    through: Tensor | None = None
    for index, (mixing, weight) in enumerate(zip(mixings, weights, strict=True)):
        after = reading(index + 1)
        assert state is not None
        if joins[index]:
            assert after is not None
            state, u = join(state, through, mixing.written(u, layer(u, weight)), mixing, after, TORCH)
            continue
        ahead = look_ahead(state, mixing, after, TORCH)  # before the layer has run
        y, through = mixing.written(u, layer(u, weight)), ahead.through
        if after is None:
            assert ahead.blocks is not None
            return write_back(ahead.blocks, y, mixing.write, TORCH)
        state, u = catch_up(ahead, y, mixing, after, TORCH)
    assert state is None
    return u


def inline(stream: Tensor, mixings: list[Mixing], weights: list[Tensor]) -> Tensor:
    """The same layers, each mixing after its output."""
    for mixing, weight in zip(mixings, weights, strict=True):
        stream, u = read(stream, mixing.read, mixing.write.numel())
        stream = mix_and_write(stream, mixing.written(u, layer(u, weight)), mixing, TORCH)
    return stream


def errors(
    variant: str, width: int, depth: int, shape: tuple[int, int, int], select: str, summed: bool, seed: int, form: str
) -> dict[str, float]:
    """Errors of the result and of every gradient."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    blocks = [selected_block(i, width, select) for i in range(depth)]
    values = {"x": randn(width, *shape)}
    for i, j in enumerate(blocks):
        values[f"weight{i}"] = randn(shape[2], shape[2]) / shape[2] ** 0.5
        for name, value in initial(variant, width, j).items():
            # Of a size that keeps the stream's scale over depth: else the condition is tested, not the code.
            values[f"{name}{i}"] = value + 0.4 / width**0.5 * randn(*value.shape)
    probe = randn(*shape) if summed else randn(width, *shape)

    def results(dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {name: value.to(dtype, copy=True).requires_grad_() for name, value in values.items()}
        coefficients = [
            {name: leaves[f"{name}{i}"] for name in initial(variant, width, j)} for i, j in enumerate(blocks)
        ]
        weights = [leaves[f"weight{i}"] for i in range(depth)]
        if dtype is torch.float64:
            out = leaves["x"]
            for j, c, weight in zip(blocks, coefficients, weights, strict=True):
                out = literal(variant, out, j, c, weight)
            out = out.sum(0) if summed else out
        else:
            mixings = [VARIANTS[variant].mixing(j, c) for j, c in zip(blocks, coefficients, strict=True)]
            stream = leaves["x"].view(width * shape[0], *shape[1:])
            if form == "inline":
                out = inline(stream, mixings, weights).view_as(leaves["x"])
                out = out.sum(0) if summed else out
            else:
                last = Reading(torch.ones(width), last=True) if summed else None
                out = deferred(stream, mixings, weights, last, joined=form == "joined")
                out = out.view(probe.shape)
        gradients = torch.autograd.grad((out * probe.to(dtype)).sum(), list(leaves.values()))
        return {"out": out.detach().double(), **dict(zip(leaves, (g.double() for g in gradients), strict=True))}

    got, wanted = results(torch.float32), results(torch.float64)
    size = wanted["out"].norm().item()
    small = {name for name in wanted if name not in ("out", "x") and not name.startswith("weight")}
    return {
        name: (got[name] - w).norm().item() / max(w.norm().item(), size if name in small else 1.0)
        for name, w in wanted.items()
    }


@pytest.mark.parametrize("form", ["deferred", "joined", "inline"])
@pytest.mark.parametrize("summed", [True, False], ids=["summed", "stream"])
@pytest.mark.parametrize("select", ["alternating", "same"])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("variant", STATIC)
def test_equals_the_literal_form(variant: str, width: int, select: str, summed: bool, form: str) -> None:
    found = errors(variant, width, 5, (7, 3, 16), select, summed, seed=width, form=form)
    assert max(found.values()) < TOLERANCE, found


@settings(max_examples=60)
@given(
    variant=st.sampled_from(sorted(STATIC)),
    width=st.integers(1, 8),
    depth=st.integers(1, 6),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(4, 9)),
    select=st.sampled_from(["alternating", "same"]),
    summed=st.booleans(),
    seed=st.integers(0, 2**31),
    form=st.sampled_from(["deferred", "joined"]),
)
def test_in_any_shape(variant, width, depth, shape, select, summed, seed, form) -> None:
    """Few numbers: rounding does not average out over depth, hence the factor."""
    found = errors(variant, width, depth, shape, select, summed, seed, form)
    assert max(found.values()) < 10 * TOLERANCE, found


@pytest.mark.parametrize("variant", STATIC)
def test_bf16_follows_inline_to_rounding(variant: str) -> None:
    """Deferred mixing rounds the same blocks to bf16 at other places: no further from float64 than inline."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * 32, 2, 16, generator=generator)
    weights = [torch.randn(16, 16, generator=generator) / 4 for _ in range(4)]
    mixings = []
    for i in range(4):
        c = initial(variant, 4, i)
        mixings.append(
            VARIANTS[variant].mixing(i, {n: v + 0.2 * torch.randn(v.shape, generator=generator) for n, v in c.items()})
        )
    exact = inline(x, mixings, weights)
    half = [w.bfloat16() for w in weights]
    distances = [
        (out.float() - exact).norm() / exact.norm()
        for out in (deferred(x.bfloat16(), mixings, half, None), inline(x.bfloat16(), mixings, half))
    ]
    assert distances[0] < 1.5 * distances[1] < 0.05


def test_the_pass_does_not_see_the_output() -> None:
    """What `catch_up` adds is all that the output changes: with another y, H' and a are the same tensors."""
    mixing = VARIANTS["gemma"].mixing(0, {"predict": torch.randn(2, 2), "correct": torch.randn(2)})
    x = torch.randn(6, 2, 5)
    ahead = look_ahead(Pending(x), mixing, Reading(torch.tensor([0.3, 0.7])), TORCH)
    assert ahead.blocks is not None
    assert ahead.a is not None
    for y in (torch.zeros(3, 2, 5), torch.ones(3, 2, 5)):
        state, u = catch_up(ahead, y, mixing, Reading(torch.tensor([0.3, 0.7])), TORCH)
        assert state is not None
        stream = write_back(state.blocks, y, mixing.write, TORCH)
        torch.testing.assert_close(u, 0.3 * stream[:3] + 0.7 * stream[3:])
        torch.testing.assert_close(stream, mix_and_write(x, y, mixing, TORCH))


def test_the_write_at_a_chunks_end_keeps_the_output_alone() -> None:
    """As the pass with no mix, with its gradients, but without the blocks among what autograd keeps."""
    mixing = Mixing(read=0, mix=torch.eye(3), write=torch.randn(3, requires_grad=True))
    x, y, weight = (
        torch.randn(6, 2, 5, requires_grad=True),
        torch.randn(2, 2, 5, requires_grad=True),
        torch.randn(6, 2, 5),
    )
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        out = write_back(x, y, mixing.write, TORCH)
    expected = mix_and_write(x, y, mixing, TORCH)
    torch.testing.assert_close(out, expected)
    inputs = [x, y, mixing.write]
    for got, wanted in zip(
        torch.autograd.grad((out * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)
    assert x.data_ptr() not in kept
