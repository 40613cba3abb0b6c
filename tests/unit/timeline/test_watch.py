"""Watched modules compute the same bits, and their forwards and backwards are seen in order."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from altup_moe.timeline.records import Recording, Span
from altup_moe.timeline.spans import record
from altup_moe.timeline.watch import watch


class Tupled(nn.Module):
    """Keywords in; a tuple, with None and a parameter in it, out (as Megatron's layers do)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, None, Tensor, dict[str, Tensor]]:
        y = self.linear(hidden)
        return y, None, self.linear.bias, {"half": (y if mask is None else y * mask).tanh()}


class Model(nn.Module):
    """Two layers with a residual around each; in-place changes of an output and of a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Tupled(), Tupled()])
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y, _, bias, more = layer(hidden=x, mask=torch.full((4,), 0.5))
            x = y.add_(bias).add_(x) + more["half"]
        return self.head(x)


def run(model: nn.Module, needs_grad: bool) -> list[Tensor]:
    """Output, input gradient (if any) and parameter gradients of one step."""
    x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_(needs_grad)
    y = model(x)
    y.square().sum().backward()
    return [y.detach(), *([x.grad] if x.grad is not None else []), *(p.grad for p in model.parameters())]


def fresh() -> Model:
    torch.manual_seed(0)
    return Model()


def names(recording: Recording) -> list[tuple[str, str]]:
    return [(span.name, span.phase) for span in recording.spans]


@pytest.mark.parametrize("needs_grad", [True, False])
def test_results_keep_their_bits_and_backwards_run_in_reverse(needs_grad: bool) -> None:
    expected = run(fresh(), needs_grad)
    model = fresh()
    with record(0) as recording:
        watch(model, "model")
        watch(model.layers, "layer")
        watch([model.head], "head")
        got = run(model, needs_grad)
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    forward, backward = recording.spans[:4], recording.spans[4:]
    assert [s.name for s in forward] == ["model", "layer", "layer", "head"]
    assert [s.name for s in backward] == ["model", "head", "layer", "layer"]
    assert {s.phase for s in forward} == {"forward"}
    assert {s.phase for s in backward} == {"backward"}
    for whole, *parts in (forward, backward):
        assert all(a.end_ns <= b.begin_ns for a, b in pairwise(parts))
        assert all(whole.begin_ns <= part.begin_ns < part.end_ns <= whole.end_ns for part in parts)
    assert forward[0].end_ns <= backward[0].begin_ns


def test_a_backward_span_is_the_modules_own_time() -> None:
    """Time spent in the backward before and after the module, and by other users of its input, is not in it."""

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, seconds: float) -> Tensor:
            ctx.seconds = seconds
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            threading.Event().wait(ctx.seconds)
            return grads[0], None

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Slow.apply(x, 0.02)

    inner = Inner()
    with record(0) as recording:
        watch(inner, "inner")
        x = Slow.apply(torch.ones(2, requires_grad=True), 0.2)
        (Slow.apply(inner(x), 0.2) + Slow.apply(x, 0.2)).sum().backward()
    backward = recording.spans[1]
    assert backward.phase == "backward"
    assert 0.02 <= (backward.end_ns - backward.begin_ns) / 1e9 < 0.15


def test_recomputed_forwards_are_seen_where_they_happen() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=True)

    model = Recomputed()
    with record(0) as recording:
        watch(model.inner, "inner")
        run(model, needs_grad=True)
    assert names(recording) == [("inner", "forward"), ("inner", "forward"), ("inner", "backward")]


def test_no_grad_has_no_backward() -> None:
    model = fresh()
    with record(0) as recording, torch.no_grad():
        watch(model, "model")
        model(torch.ones(3, 4))
    assert names(recording) == [("model", "forward")]


def test_two_halves_inside_one_module_do_not_swap() -> None:
    """Half 0 enters, half 1 enters, half 0 leaves, half 1 leaves."""
    began, entered, left = threading.Event(), threading.Event(), threading.Event()

    class Meeting(nn.Module):
        def forward(self, x: Tensor, half: int) -> Tensor:
            if half == 0:
                began.set()
                assert entered.wait(10)
            else:
                entered.set()
                assert left.wait(10)
            return x

    module = Meeting()

    def half(number: int) -> None:
        assert number == 0 or began.wait(10)
        module(torch.ones(1), number)
        left.set()

    with record(0) as recording:
        watch(module, "meeting")
        threads = [threading.Thread(target=half, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first, second = recording.spans
    assert first.begin_ns <= second.begin_ns < first.end_ns < second.end_ns


def test_a_forward_that_raises_leaves_nothing_open() -> None:
    module = nn.Linear(4, 4)
    with record(0) as recording:
        watch(module, "linear")
        with pytest.raises(RuntimeError):
            module(torch.ones(3))
        module(torch.ones(4)).sum().backward()
    assert names(recording) == [("linear", "forward"), ("linear", "forward"), ("linear", "backward")]
    assert recording.spans[0].end_ns <= recording.spans[1].begin_ns


def hooks(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_hooks_go_with_the_handle_and_with_the_recording() -> None:
    a, b, c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    watch(a, "not recording")
    assert hooks(a) == 0
    with record(0) as recording:
        handle = watch(b, "b")
        watch(c, "c")
        assert hooks(b) == hooks(c) == 2
        handle.remove()
        b(torch.ones(4))
        c(torch.ones(4))
    assert [hooks(m) for m in (a, b, c)] == [0, 0, 0]
    assert [isinstance(span, Span) and span.name for span in recording.spans] == ["c"]


def test_two_watches_of_one_module_do_not_swap() -> None:
    """torch runs both kinds of hooks in the order they were attached: the first to begin is the first to end."""
    module = nn.Linear(4, 4)
    with record(0) as recording:
        watch(module, "first")
        watch(module, "second")
        module(torch.ones(4))
    first, second = recording.spans
    assert (first.name, second.name) == ("first", "second")
    assert first.begin_ns < second.begin_ns < first.end_ns < second.end_ns
