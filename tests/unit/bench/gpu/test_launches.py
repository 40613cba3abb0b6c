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
    kernels, launching, graph = launch_figures("", Launched(host=3e-5, gpu=2e-5, graph_host=4e-6, graph_gpu=2.4e-5))
    assert (round(kernels.value, 3), kernels.unit) == (20, "us")
    assert launching.value == pytest.approx(1.5)
    assert launching.met is False
    assert graph.value == pytest.approx(24 / 30)
    _, launching, graph = launch_figures("", Launched(host=3e-5, gpu=9e-5, graph_host=4e-6, graph_gpu=9e-5))
    assert launching.met is True
    assert graph.value == pytest.approx(1)


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


def test_a_call_and_its_graph_are_both_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = launches.mixing_calls(*REHEARSAL.launched[0], CPU)
    assert list(calls) == ["altup", "mhc"]
    replayed: list[int] = []
    monkeypatch.setattr(launches, "captured", lambda call, device: lambda: replayed.append(1))
    seconds = launches.launched(calls["altup"], 1, CPU)
    # Launching some in a row, and running one, after warming up.
    assert len(replayed) == (launches.WARM_UPS + 1) * (launches.IN_A_ROW + 1)
    assert min(vars(seconds).values()) > 0
