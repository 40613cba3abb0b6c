"""Two steps under way: what they compute, and that one computes while the other's output travels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from altup_moe.altup.kernels import kernel
from altup_moe.altup.mixing import Reading
from altup_moe.altup.variants import VARIANTS
from altup_moe.model.recompute import Travelling
from altup_moe.model.step_arithmetic import StepArithmetic, StepSettings, arithmetic_of
from altup_moe.model.two_step_walk import walk_two_steps
from altup_moe.overlap.alternate import yield_to_other

S, B, D, WIDTH = 5, 2, 8, 4
DELAYED = [name for name, row in VARIANTS.items() if row.delays and row.blocks]


class Mark(torch.autograd.Function):
    """Writes down when it runs, forward and backward."""

    @staticmethod
    def forward(ctx, x, name, events):
        ctx.name, ctx.events = name, events
        events.append(name)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.events.append(f"{ctx.name} back")
        return grad, None, None


class Stack:
    """Steps with random coefficients, around a layer or a branch, whose output may travel twice."""

    def __init__(self, variant: str, level: str, steps: int, travels: bool = True) -> None:
        row = VARIANTS[variant]
        generator = torch.Generator().manual_seed(0)
        self.travels, self.level, self.events, self.leaves = travels, level, [], []
        # The passes of static weights are fp32's.
        self.dtype = torch.float64 if row.per_token else torch.float32
        self.steps: list[StepArithmetic] = []

        def drawn(*shape: int, scale: float = 0.4) -> Tensor:
            value = torch.randn(*shape, generator=generator, dtype=torch.float64).to(self.dtype) * scale
            self.leaves.append(value.requires_grad_())
            return value

        for index in range(steps):
            block = index % WIDTH
            settings = StepSettings(
                row, WIDTH, block, level, 1e-6, None, kernel("torch", torch.device("cpu")),
                next_block=(block + 1) % WIDTH,
            )  # fmt: skip
            sizes = {name: each.sizes(WIDTH, D) for name, each in row.coefficients.items()}
            c = nn.ParameterDict({name: nn.Parameter(drawn(*size)) for name, size in sizes.items()})
            self.leaves[-len(sizes) :] = [*c.values()] if sizes else []
            self.steps.append(arithmetic_of(settings, c))
        self.matrices = [drawn(D, D) for _ in range(steps)]
        self.stream = drawn(WIDTH * S, B, D, scale=1.0)

    def compute(self, s: int, u: Tensor) -> Tensor:
        """tanh(W u), and u at layer level; away twice, as between dispatch and experts, and in combine."""
        if self.level == "branch" and s % 2 == 0:
            return torch.tanh(Mark.apply(u, f"attention {s}", self.events) @ self.matrices[s])
        y = Mark.apply(u, f"{'route' if self.level == 'branch' else 'attention'} {s}", self.events)
        if self.travels:
            yield_to_other()
        y = Mark.apply(torch.tanh(y @ self.matrices[s]), f"experts {s}", self.events)
        if self.travels:
            yield_to_other()
        y = Mark.apply(y, f"output {s}", self.events)
        return y + u if self.level == "layer" else y

    def readings(self) -> list[Reading | None]:
        """After each step what the next one reads; nothing after the last."""
        return [*(step.reading(None) for step in self.steps[1:]), None]

    def one_by_one(self, inline: bool) -> Travelling:
        """The state after all steps, each begun when the one before has ended."""
        state = Travelling(self.stream)
        for s, (step, after) in enumerate(zip(self.steps, self.readings(), strict=True)):
            run = step.inline if inline else step.deferred
            state = run(state, after, lambda u, s=s: (self.compute(s, u), None))
        return state

    def two_at_a_time(self) -> Travelling:
        """The same by the walk."""
        steps, readings = dict(enumerate(self.steps)), dict(enumerate(self.readings()))
        branches = self.level == "branch"
        return walk_two_steps(steps, readings, self.compute, Travelling(self.stream), lambda s, y: None, branches)

    def gradients(self, state: Travelling) -> list[Tensor]:
        """Of a loss of the state."""
        assert state.blocks is not None
        loss = state.blocks.square().sum() + (0 if state.u is None else state.u.sin().sum())
        return list(torch.autograd.grad(loss, self.leaves, materialize_grads=True))


def worst(got: list, expected: list) -> float:
    """Largest difference over the largest value, of all pairs."""
    pairs = zip(got, expected, strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-9)).item() for a, b in pairs)


@pytest.mark.parametrize("travels", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("variant", DELAYED)
def test_the_walk_computes_what_steps_one_by_one_do(variant: str, steps: int, travels: bool) -> None:
    for level in VARIANTS[variant].levels:
        stack = Stack(variant, level, steps, travels)
        inline, deferred, walked = stack.one_by_one(True), stack.one_by_one(False), stack.two_at_a_time()
        expected = stack.gradients(inline)
        exact = stack.dtype is torch.float64
        for state in (deferred, walked):
            assert worst([state.blocks], [inline.blocks]) <= (1e-12 if exact else 1e-6)
            assert worst(stack.gradients(state), expected) <= (1e-11 if exact else 1e-5)


def test_each_trip_of_an_output_is_somebody_elses_time() -> None:
    """Attention of step s + 1 while step s's tokens go out, its experts while they come back; and backward alike."""
    stack = Stack("altup", "layer", 4)
    state = stack.two_at_a_time()
    forward = list(stack.events)
    assert forward == [
        "attention 0", "attention 1", "experts 0", "experts 1", "output 0", "attention 2", "output 1", "attention 3",
        "experts 2", "experts 3", "output 2", "output 3",
    ]  # fmt: skip
    stack.events.clear()
    stack.gradients(state)
    assert stack.events == [f"{name} back" for name in reversed(forward)]


def test_around_branches_each_attention_is_in_a_trip_of_its_own() -> None:
    """The first too; and backward alike."""
    stack = Stack("altup", "branch", 6)
    state = stack.two_at_a_time()
    forward = list(stack.events)
    assert forward == [
        "route 1", "attention 0", "experts 1", "attention 2", "output 1",
        "route 3", "attention 4", "experts 3", "output 3",
        "route 5", "experts 5", "output 5",
    ]  # fmt: skip
    stack.events.clear()
    stack.gradients(state)
    assert stack.events == [f"{name} back" for name in reversed(forward)]


@pytest.mark.parametrize("variant", DELAYED)
def test_an_output_is_read_by_the_step_after_the_next(variant: str) -> None:
    """The definition: the input of step s + 1 does not move with the output of step s, that of step s + 2 does."""
    for level in VARIANTS[variant].levels:
        inputs = []
        for shift in (0.0, 1.0):
            stack, seen = Stack(variant, level, 4), {}

            def compute(u: Tensor, s: int, seen: dict = seen, shift: float = shift) -> tuple[Tensor, None]:
                seen[s] = u.detach()
                return u.tanh() + (shift if s == 1 else 0.0), None

            state = Travelling(stack.stream)
            for s, (step, after) in enumerate(zip(stack.steps, stack.readings(), strict=True)):
                state = step.inline(state, after, lambda u, s=s: compute(u, s))
            inputs.append(seen)
        moved = [not torch.equal(inputs[0][s], inputs[1][s]) for s in range(4)]
        assert moved == [False, False, False, True], (variant, level)


def test_a_masked_write_has_no_gradient() -> None:
    """Of altup's g the entry of the block that the next step reads: its value says nothing."""
    stack = Stack("altup", "layer", 3)
    gradients = stack.gradients(stack.one_by_one(True))
    corrects = [g for leaf, g in zip(stack.leaves, gradients, strict=True) if leaf.shape == (WIDTH,)]
    assert [(g == 0).nonzero().flatten().tolist() for g in corrects] == [[1], [2], [3]]
