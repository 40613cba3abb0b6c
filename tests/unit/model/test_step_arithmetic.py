"""Deferred steps against inline ones: with weights for every token in float64, coefficient networks too."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from altup_moe.altup import mixing
from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Reading
from altup_moe.altup.variants import VARIANTS
from altup_moe.model.recompute import Travelling
from altup_moe.model.step_arithmetic import StepArithmetic, StepSettings, arithmetic_of
from altup_moe.overlap.deferred_work import run_posted

S, B, D, STEPS = 11, 3, 16, 6
VARIANTS_PER_TOKEN = ("mhc", "mhc_single_pass", "independent_hc", "gated_residual")


def stack(variant: str, width: int, seed: int = 0) -> tuple[list[StepArithmetic], list[Tensor], Tensor]:
    """Steps, everything that has a gradient (coefficients, branches' matrices, the stream), and the stream."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).requires_grad_()

    steps, leaves = [], []
    for index in range(STEPS):
        settings = StepSettings(
            VARIANTS[variant], width, index % width, "branch", 1e-6, None, kernel("torch", torch.device("cpu"))
        )
        rows = VARIANTS[variant].coefficients.items()
        c = nn.ParameterDict({name: nn.Parameter(drawn(*row.sizes(width, D), scale=0.3)) for name, row in rows})
        steps.append(arithmetic_of(settings, c))
        leaves += [*c.values()]
    stream = drawn(width * S, B, D)
    return steps, [*leaves, stream], stream


def branch(matrix: Tensor, posted: list[bool], u: Tensor) -> tuple[Tensor, None]:
    """A branch that communicates: what is posted runs while it does."""
    if posted:
        run_posted()
    return torch.tanh(u @ matrix), None


def walk(steps: list[StepArithmetic], stream: Tensor, deferred: bool, in_window: bool = True) -> Travelling:
    """The stream after all steps, as `AltUpBlock` goes over them."""
    matrices = [
        torch.randn(D, D, generator=torch.Generator().manual_seed(100 + n), dtype=torch.float64) * 0.3
        for n in range(len(steps))
    ]
    state = Travelling(stream)
    for index, (step, matrix) in enumerate(zip(steps, matrices, strict=True)):
        compute = partial(branch, matrix, [True] if in_window else [])
        if deferred:
            after: Reading | None = Reading(None) if index + 1 < len(steps) else None
            state = step.deferred(state, after, compute)
        else:
            state = step.inline(state, None, compute)
    return state


def results(variant: str, width: int, **ways: bool) -> tuple[Travelling, tuple[Tensor, ...]]:
    """The last state, and all gradients of a loss of it."""
    steps, leaves, stream = stack(variant, width)
    state = walk(steps, stream, **ways)
    assert state.blocks is not None
    assert state.y is None
    loss = state.blocks.square().sum() + (0 if state.u is None else state.u.sin().sum())
    return state, torch.autograd.grad(loss, leaves, allow_unused=True)


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("in_window", [True, False])
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS_PER_TOKEN)
def test_deferred_is_inline(variant: str, width: int, in_window: bool) -> None:
    inline, expected = results(variant, width, deferred=False)
    deferred, got = results(variant, width, deferred=True, in_window=in_window)
    assert inline.blocks is not None
    assert deferred.blocks is not None
    assert relative(deferred.blocks, inline.blocks) <= 1e-12
    assert (deferred.u is None) == (inline.u is None) == (variant != "mhc_single_pass")
    for mine, same in zip(got, expected, strict=True):
        assert (mine is None) == (same is None)
        if mine is not None:
            assert relative(mine, same) <= 1e-11


def test_single_pass_leaves_one_axpy_after_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a branch's output is there, no pass over the stream runs before the next branch begins."""
    from altup_moe.altup import token_mixing

    events: list[str] = []
    for each in (token_mixing.TokenPass, token_mixing.PassAhead, token_mixing.Write):
        forward = each.forward
        counted = partial(lambda run, *args: (events.append("pass"), run(*args))[1], forward)
        monkeypatch.setattr(each, "forward", staticmethod(counted))
    steps, _, stream = stack("mhc_single_pass", 4)
    state = Travelling(stream)

    def compute(u: Tensor) -> tuple[Tensor, None]:
        events.append("begins")
        run_posted()
        events.append("ends")
        return u.tanh(), None

    for index, step in enumerate(steps):
        state = step.deferred(state, Reading(None) if index + 1 < len(steps) else None, compute)
    gaps = " ".join(events).split("ends")[1:-1]
    assert [gap.split() for gap in gaps] == [["begins", *["pass"] * 2]] * (STEPS - 1)


@pytest.mark.parametrize("variant", ["altup", "hc", "wide_residual_kept"])
def test_static_steps_of_a_layer_share_a_pass(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers of two steps: a pass while each second step communicates, and one that writes the end."""
    events: list[str] = []
    steps, stream = static_steps(variant, 4), torch.randn(4 * S, B, D)
    inline, deferred = Travelling(stream), Travelling(stream)
    for step in steps:
        inline = step.inline(inline, None, lambda u: (u.sin(), None))

    def reading(index: int) -> Reading | None:
        return None if index == STEPS else steps[index].reading(reading(index + 1) if index % 2 == 0 else None)

    def compute(u: Tensor) -> tuple[Tensor, None]:
        events.append("begins")
        run_posted()
        events.append("ends")
        return u.sin(), None

    for each in (mixing.OnePass, mixing.WriteBack):
        counted = partial(lambda run, *args: (events.append("pass"), run(*args))[1], each.forward)
        monkeypatch.setattr(each, "forward", staticmethod(counted))
    for index, step in enumerate(steps):
        deferred = step.deferred(deferred, reading(index + 1), compute)
    assert events == ["begins", "ends", "begins", "pass", "ends"] * (STEPS // 2) + ["pass"]
    assert inline.blocks is not None
    assert deferred.blocks is not None
    torch.testing.assert_close(deferred.blocks, inline.blocks)


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("variant", VARIANTS_PER_TOKEN)
def test_a_gradient_that_comes_in_is_left_alone(variant: str, deferred: bool) -> None:
    """Where blocks are not mixed it is handed on as theirs, and coefficients add to theirs in place."""
    steps, leaves, stream = stack(variant, 2)
    out = walk(steps, stream, deferred=deferred).blocks
    assert out is not None
    given = torch.randn_like(out)
    kept = given.clone()
    torch.autograd.grad(out, leaves, given, allow_unused=True)
    assert torch.equal(given, kept)


def static_steps(variant: str, width: int) -> list[StepArithmetic]:
    """Steps with random coefficients; every first one of two joins the second."""
    row, code = VARIANTS[variant], kernel("torch", torch.device("cpu"))
    torch.manual_seed(0)
    steps = []
    for index in range(STEPS):
        settings = StepSettings(row, width, index % width, "branch", 1e-6, None, code, joins=index % 2 == 0)
        sizes = {name: each.sizes(width, D) for name, each in row.coefficients.items()}
        c = nn.ParameterDict({name: nn.Parameter(torch.randn(size) / width) for name, size in sizes.items()})
        steps.append(arithmetic_of(settings, c))
    return steps
