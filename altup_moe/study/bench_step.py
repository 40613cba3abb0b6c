"""`altup-moe bench step`: what the wide stream costs, as ratios of medians over interleaved training steps.

Time: one process holds a model of every width and takes a step of each in turn, so that a change of the machine's speed
meets all of them. Memory: one fresh process a width, since a peak cannot be reset within one.
"""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.checks import check_config
from altup_moe.config.schema import Width
from altup_moe.model.build import build_model
from altup_moe.parallel.topology import Topology, topology
from altup_moe.study.options import StepBench
from altup_moe.train.batches import Batch
from altup_moe.train.metrics import peak_memory_gib
from altup_moe.train.optim import build_optimizer
from altup_moe.train.step import train_step


@dataclass(frozen=True)
class WidthResult:
    """One width: a step's seconds (median, extremes), peak memory of its own process, ratios to the first width."""

    width: int
    median_seconds: float
    min_seconds: float
    max_seconds: float
    peak_gib: float
    time_ratio: float
    memory_ratio: float


def run_config(bench: StepBench, width: Width) -> RunConfig:
    """The model that is stepped: recycled AltUp of a width, untrained, on random tokens."""
    heads = max(1, bench.hidden_size // 64)
    model = ModelConfig(
        num_layers=bench.num_layers,
        hidden_size=bench.hidden_size,
        ffn_hidden_size=bench.hidden_size * 8 // 3 // 64 * 64 or 64,
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=bench.seq_length,
        vocab_size=8192,
    )
    moe = MoEConfig(num_experts=bench.moe_experts, ffn_hidden_size=model.ffn_hidden_size // 2)
    train = TrainConfig(micro_batch_size=bench.micro_batch_size, global_batch_size=bench.micro_batch_size)
    return RunConfig(model=model, altup=AltUpConfig(width=width), moe=moe, train=train)


class _Stepper:
    """A model that can be stepped again and again on the same batch."""

    def __init__(self, config: RunConfig, topo: Topology) -> None:
        self.config, self.topology = config, topo
        self.chunks = build_model(config, topo)
        self.optimizer = build_optimizer(self.chunks, config)
        generator = torch.Generator().manual_seed(0)
        shape = (config.train.micro_batch_size, config.model.seq_length + 1)
        tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
        self.batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(shape[0], shape[1] - 1))

    def step(self) -> float:
        """Seconds of one optimizer step."""
        started = time.perf_counter()
        train_step(self.chunks, self.optimizer, [self.batch], self.config, self.topology)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started


def measure_times(bench: StepBench) -> dict[Width, list[float]]:
    """Seconds of each timed step by width, interleaved, after two steps of each that are not counted."""
    torch.set_num_threads(bench.threads)
    with topology(run_config(bench, 1).parallel) as topo:
        steppers = {width: _Stepper(run_config(bench, width), topo) for width in bench.widths}
        seconds: dict[Width, list[float]] = {width: [] for width in bench.widths}
        for repeat in range(bench.repeats + 2):
            for width, stepper in steppers.items():
                taken = stepper.step()
                if repeat >= 2:
                    seconds[width].append(taken)
    return seconds


def _peak(bench: StepBench, width: Width, result: Any) -> None:
    measure_times(replace(bench, widths=(width,), repeats=1))
    result.put(peak_memory_gib())


def measure_memory(bench: StepBench, width: Width) -> float:
    """Peak GiB of a fresh process that takes three steps of a width."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_peak, args=(bench, width, result))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the memory run of width {width} ended with code {process.exitcode}")
    return result.get()


def measure(bench: StepBench) -> list[WidthResult]:
    """All widths, with ratios to the first."""
    for width in bench.widths:
        check_config(run_config(bench, width), 1)
    # Memory first: a child's peak starts at what its parent holds.
    peaks = {width: measure_memory(bench, width) for width in bench.widths}
    seconds = measure_times(bench)
    base = bench.widths[0]
    base_median = statistics.median(seconds[base])
    return [
        WidthResult(
            width,
            statistics.median(s),
            min(s),
            max(s),
            peaks[width],
            statistics.median(s) / base_median,
            peaks[width] / peaks[base],
        )
        for width, s in seconds.items()
    ]


def bench_step(bench: StepBench) -> int:
    """Measure and print a table, or one JSON object."""
    results = measure(bench)
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": bench.threads}
        print(json.dumps({"bench": vars(bench), **machine, "widths": [vars(r) for r in results]}))
        return 0
    print(
        f"hidden {bench.hidden_size}, {bench.num_layers} layers, sequence {bench.seq_length}, micro-batch "
        f"{bench.micro_batch_size}, {bench.moe_experts or 'no'} experts, fp32, {bench.threads} thread(s), "
        f"median of {bench.repeats} interleaved steps, no overlap"
    )
    print("  K   step ms (min .. max)            time vs first   peak GiB   memory vs first")
    for r in results:
        spread = f"{1e3 * r.median_seconds:8.1f} ({1e3 * r.min_seconds:.1f} .. {1e3 * r.max_seconds:.1f})"
        print(f"  {r.width}   {spread:<32}{r.time_ratio:8.3f}{r.peak_gib:15.2f}{r.memory_ratio:15.3f}")
    return 0
