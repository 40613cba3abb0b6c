"""The check of launching: what it times, what it captures, and how it judges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from altup_moe.altup.kernels import kernel
from altup_moe.bench.gpu import launches
from altup_moe.bench.gpu.launches import Launched, launch_figures
from altup_moe.bench.gpu.sizes import REHEARSAL

CPU = torch.device("cpu")


def test_the_static_step_is_a_deferred_layer() -> None:
    """The next input is a block of x + g y, and the next pass M (x + g y), with the gradients of autograd."""
    update, (mix, write) = launches.static_step(kernel("torch", CPU), CPU)
    torch.manual_seed(0)
    mix.data += 0.1 * torch.randn_like(mix)
    write.data += 0.1 * torch.randn_like(write)
    x, y = torch.randn(4, 3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    grads = torch.randn(3, 5), torch.randn(4, 3, 5)
    written = x + write[:, None, None] * y
    wanted = [written[1], torch.einsum("kj,jtd->ktd", mix, written)]
    found = update(x, y)
    of = [x, y, mix, write]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, of, grads), torch.autograd.grad(wanted, of, grads)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_launching_that_takes_longer_than_its_kernels_is_told() -> None:
    kernels, launching = launch_figures("", Launched(host=3e-5, gpu=2e-5))
    assert (round(kernels.value, 3), kernels.unit) == (20, "us")
    assert launching.value == pytest.approx(1.5)
    assert launching.met is False
    assert launch_figures("", Launched(host=3e-5, gpu=9e-5))[1].met is True


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kernels_are_added_up_where_they_ran(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [SimpleNamespace(self_device_time_total=30.0, self_cpu_time_total=5.0)] * 3
    asked = []

    @contextmanager
    def profile(activities: list[Any]) -> Iterator[Any]:
        asked.extend(activities)
        yield SimpleNamespace(key_averages=lambda: rows)

    calls: list[int] = []
    monkeypatch.setattr(launches, "profile", profile)
    seconds = launches.kernel_seconds(lambda: calls.append(len(asked)), torch.device(device))
    assert seconds == pytest.approx(9e-5 if device == "cuda" else 1.5e-5)
    assert [activity.name for activity in asked] == [device.upper()]
    assert calls == [0, 1]  # the first is not counted


def test_a_graph_is_captured_after_all_that_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launches.captured(print, CPU) is print
    seen: list[str] = []

    class Graph:
        def replay(self) -> None:
            seen.append("replay")

    @contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        seen.append("begin")
        yield
        seen.append("end")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    launches.captured(lambda: seen.append("call"), torch.device("cuda"))()
    assert seen == ["call"] * launches.WARM_UPS + ["begin", "call", "end", "replay"]


def test_the_longer_of_launching_a_graph_and_running_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []
    monkeypatch.setattr(launches, "captured", lambda call, device: lambda: replayed.append(1))
    for running, host, longer in ((5.0, 3.0, 5.0), (2.0, 3.0, 3.0)):
        monkeypatch.setattr(launches, "interleaved_medians", lambda calls, *_, s=running: dict.fromkeys(calls, s))
        monkeypatch.setattr(launches, "host_seconds", lambda call, repeats, s=host: (call(), s)[1])
        assert launches.graph_seconds(print, 1, CPU) == longer
    assert replayed == [1, 1]


def test_what_cannot_be_captured_costs_one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All others are there: of both variants, and of steps."""

    def refuses(call: Any, device: torch.device) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(launches, "captured", refuses)
    monkeypatch.setattr(launches, "launched_runs", lambda sizes: {})
    found = launches.launches(REHEARSAL)
    assert [figure.what for figure in found.figures] == [
        f"{name}, 8 x 64: {what}" for name in ("altup", "mhc") for what in ("kernels", "launching over kernels")
    ]
    assert [note for note in found.notes if "no CUDA graph" in note and "not permitted" in note] == found.notes[1:]
    assert len(found.notes) == 3
