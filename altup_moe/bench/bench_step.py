"""`altup-moe bench step`: what the wide stream costs, as ratios of medians over interleaved training steps.

Time: one process holds a model of every width and takes a step of each in turn, so that a change of the machine's speed
meets all of them. Memory: one fresh process a width, since a peak cannot be reset within one.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
from dataclasses import dataclass, replace

import torch

from altup_moe.bench.options import StepBench
from altup_moe.bench.stepper import Stepper, interleaved, milliseconds_text, run_config
from altup_moe.config.checks import check_config
from altup_moe.config.model_schema import Width
from altup_moe.parallel.start_ranks import on_ranks, write_result
from altup_moe.parallel.topology import topology
from altup_moe.train.metrics import peak_memory_gib


@dataclass(frozen=True)
class WidthResult:
    """Result of one width: seconds of a step, peak memory of its own process, ratios to the first width."""

    width: int
    median_seconds: float
    min_seconds: float
    max_seconds: float
    peak_gib: float
    time_ratio: float
    memory_ratio: float


def measure_times(bench: StepBench) -> dict[Width, list[float]]:
    """Seconds of each timed step by width, interleaved, after two steps of each that are not counted."""
    torch.set_num_threads(bench.threads)
    with topology(run_config(bench, 1).parallel) as topo:
        return interleaved({width: Stepper(run_config(bench, width), topo) for width in bench.widths}, bench.repeats)


def measure_memory(bench: StepBench, width: Width) -> float:
    """Peak GiB of a fresh process that takes three steps of a width."""
    options = json.dumps(vars(replace(bench, widths=(width,), repeats=1)))
    threads = {"OMP_NUM_THREADS": str(bench.threads)}
    return float(on_ranks(1, "altup_moe.bench.bench_step", [options], environment=threads)[0])


def measure_step(bench: StepBench) -> list[WidthResult]:
    """Measure all widths, with ratios to the first."""
    for width in bench.widths:
        check_config(run_config(bench, width), 1)
    # Memory first: the peak of a new process starts at the memory of the one that started it.
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
    results = measure_step(bench)
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": bench.threads}
        print(json.dumps({"bench": vars(bench), **machine, "widths": [vars(r) for r in results]}))
        return 0
    print(
        f"hidden {bench.hidden_size}, {bench.num_layers} layers, sequence {bench.seq_length}, micro-batch "
        f"{bench.micro_batch_size}, {bench.moe_experts or 'no'} experts, fp32, {bench.threads} thread(s), "
        f"median of {bench.repeats} interleaved steps"
    )
    print("  K   step ms (min .. max)            time vs first   peak GiB   memory vs first")
    for r in results:
        taken = milliseconds_text(r.median_seconds, r.min_seconds, r.max_seconds)
        print(f"  {r.width}   {taken:<32}{r.time_ratio:8.3f}{r.peak_gib:15.2f}{r.memory_ratio:15.3f}")
    return 0


def main(options: str, directory: str) -> None:
    """In a process that measures memory: take the steps, and write the peak in GiB."""
    given = json.loads(options)
    measure_times(StepBench(**{**given, "widths": tuple(given["widths"])}))
    write_result(directory, peak_memory_gib())


if __name__ == "__main__":
    main(*sys.argv[1:])
