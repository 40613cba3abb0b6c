"""Whether launching takes longer than what is launched: of one layer's mixing, and of whole steps.

A pass over a stream is few kernels, weights of every token are many small ones. Where the host takes longer to launch
them than the GPU to run them, a CUDA graph, which launches all of them at once, would save time; elsewhere it would
save nothing. So each is timed both ways.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from altup_moe.altup.kernels import Kernel, kernel
from altup_moe.altup.mixing import Ahead, Reading, catch_up, look_ahead
from altup_moe.altup.static import Mixing
from altup_moe.bench.dynamic_contenders import our_step
from altup_moe.bench.gpu.jobs import in_a_line
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.timing import WARM_UPS, Call, interleaved_medians
from altup_moe.bench.mixing_contenders import by_autograd
from altup_moe.bench.mixing_rivals import Update
from altup_moe.bench.stepper import Stepper, wait_for_gpu
from altup_moe.config import AltUpConfig, RunConfig
from altup_moe.config.model_schema import Width
from altup_moe.parallel.topology import topology

WIDTH: Width = 4
IN_A_ROW = 4
"""Calls whose launching is timed at once: their kernels fit into a GPU's queue, so that the host never waits there."""
LAUNCHING = 1.0
"""Launching over running, at most. Above it the GPU waits for the host."""
WORKING = 0.95
"""Share of a step in which the GPU works, at least."""
NO_GRAPHS = "CUDA graphs: not rehearsed, the pass itself takes the place of its graph."


@dataclass(frozen=True)
class Launched:
    """Seconds of one call. ``host``: to launch it. ``gpu``: of the kernels themselves, without gaps."""

    host: float
    gpu: float


def launches(sizes: Sizes) -> Found:
    """Steps of the first shape of `steps`; then mixing of one layer with K = 4, forward and backward, at each size."""
    device, found = torch.device(sizes.device), Found()
    with topology(RunConfig().parallel) as topo:
        for name, run in launched_runs(sizes).items():
            step = Stepper(run, topo).step
            seconds = statistics.median([step() for _ in range(WARM_UPS + sizes.repeats)][WARM_UPS:])
            share = kernel_seconds(step, device) / seconds
            found.figures.append(Figure(f"{name}: share of a step in which the GPU works", share, at_least=WORKING))
    if device.type != "cuda":
        found.notes.append(NO_GRAPHS)
    for tokens, hidden in sizes.launched:
        for name, call in mixing_calls(tokens, hidden, device).items():
            where = f"{name}, {tokens} x {hidden}"
            plain = Launched(host_seconds(call, sizes.repeats), kernel_seconds(call, device))
            found.figures += launch_figures(where, plain)
            try:
                graph = graph_seconds(call, sizes.repeats, device)
            except Exception as problem:
                # Whatever cannot be captured: the other figures are worth having.
                found.notes.append(f"{where}: no CUDA graph: {in_a_line(problem)}")
                continue
            text = f"{where}: a CUDA graph of it over launching one by one"
            found.figures.append(Figure(text, graph / max(plain.host, plain.gpu)))
    return found


def launched_runs(sizes: Sizes) -> dict[str, RunConfig]:
    """Steps that are looked at. On a CPU the interpreter of Triton's kernels would be all of a step."""
    shape, on_gpu = sizes.steps[0], sizes.device == "cuda"
    streams = {
        "K = 1": AltUpConfig(1),
        "K = 4": AltUpConfig(WIDTH),
        "K = 4, mhc": AltUpConfig(WIDTH, "mhc", level="branch"),
    }
    return {
        f"{shape.name}, {name}": replace(run_of(shape), altup=replace(altup, kernel="auto" if on_gpu else "torch"))
        for name, altup in streams.items()
    }


def mixing_calls(tokens: int, hidden: int, device: torch.device) -> dict[str, Call]:
    """By variant: one layer's mixing in bf16, with its gradients."""
    generator = torch.Generator().manual_seed(0)
    k = kernel("triton" if device.type == "cuda" else "torch", device)

    def draw(*first: int) -> Tensor:
        return torch.randn(*first, tokens, hidden, generator=generator).to(device, torch.bfloat16)

    x_KTD, y_TD, grads = draw(WIDTH), draw(), [draw(), draw(WIDTH)]
    steps = {"altup": static_step(k, device), "mhc": our_step(k, WIDTH, hidden, device)}
    return {
        name: by_autograd(update, parameters, x_KTD, y_TD, grads).both for name, (update, parameters) in steps.items()
    }


def static_step(k: Kernel, device: torch.device) -> tuple[Update, list[Tensor]]:
    """(H [K, T, D], y [T, D]) -> [u [T, D], M (H + g y) [K, T, D]]: after a layer's output the axpy to the next input,
    and the next layer's pass."""
    mix, write = torch.eye(WIDTH, device=device).requires_grad_(), torch.ones(WIDTH, device=device).requires_grad_()

    def update(x_KTD: Tensor, y_TD: Tensor) -> list[Tensor]:
        mixing = Mixing(0, mix, write)
        # A token is a position of one sample: [K, T, D] is the stream [K*T, 1, D].
        ahead = Ahead(x_KTD.reshape(-1, 1, x_KTD.shape[-1]), None)
        stream, u = catch_up(ahead, y_TD[:, None], mixing, Reading(1), k)
        assert stream is not None
        blocks = look_ahead(stream, mixing, Reading(2), k).blocks
        assert blocks is not None
        return [u[:, 0], blocks.view_as(x_KTD)]

    return update, [mix, write]


def launch_figures(where: str, seconds: Launched) -> list[Figure]:
    """What the GPU runs, and what launching takes of that."""
    return [
        Figure(f"{where}: kernels", 1e6 * seconds.gpu, "us"),
        Figure(f"{where}: launching over kernels", seconds.host / seconds.gpu, at_most=LAUNCHING),
    ]


def graph_seconds(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of a call that is replayed from a CUDA graph: of launching it or of running it, whichever is longer."""
    replay = captured(call, device)
    return max(host_seconds(replay, repeats), interleaved_medians({"graph": replay}, repeats, device)["graph"])


def host_seconds(call: Call, repeats: int) -> float:
    """Median seconds until a call has come back. Its kernels may still run."""
    taken = []
    for turn in range(WARM_UPS + repeats):
        wait_for_gpu()
        began = time.perf_counter()
        for _ in range(IN_A_ROW):
            call()
        if turn >= WARM_UPS:
            taken.append((time.perf_counter() - began) / IN_A_ROW)
    wait_for_gpu()
    return statistics.median(taken)


def kernel_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of all kernels of one call, added up, by torch's profiler. On a CPU: of its operations."""
    on_gpu = device.type == "cuda"
    call()
    wait_for_gpu()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        call()
        wait_for_gpu()
    rows: list[Any] = seen.key_averages()
    return sum(row.self_device_time_total if on_gpu else row.self_cpu_time_total for row in rows) / 1e6


def captured(call: Call, device: torch.device) -> Call:
    """The replay of a CUDA graph of a call, whose inputs stay where they are. On a CPU the call itself."""
    if device.type != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # What is only done once (compiling, handles of libraries) cannot be captured.
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
