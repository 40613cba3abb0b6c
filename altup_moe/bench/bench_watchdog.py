"""`altup-moe bench watchdog`: what the watchdog's notes of collectives cost a step.

The ranks share the experts of one model, so that a step has many exchanges, and take steps with and without notes in
turn. On a busy machine the ratio of two medians moves by more than the notes cost. So the time of one note is
measured too, beside the same all-reduce of a world of one without it, and multiplied by the notes of a step.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist

from altup_moe.bench.options import WatchdogBench
from altup_moe.bench.stepper import UNCOUNTED, Stepper, run_config
from altup_moe.config import ParallelConfig, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.parallel.topology import topology
from altup_moe.parallel.watchdog.notes import keep_notes
from altup_moe.parallel.watchdog.ring import new_memory, read_header

CALLS = 2000
"""All-reduces of a turn in which the time of one note is measured."""


def watchdog_config(bench: WatchdogBench, world_size: int) -> RunConfig:
    """The stepped model, its experts spread over all ranks."""
    config = run_config(bench, 2)
    train = replace(config.train, global_batch_size=bench.micro_batch_size * world_size)
    return replace(config, parallel=ParallelConfig(expert=world_size), train=train)


def note_seconds(repeats: int) -> float:
    """Seconds of one note: median of the differences of turns with and without notes, in a group of this rank alone."""
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    x = torch.ones(4, 8)

    def turn() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            dist.all_reduce(x, group=group)
        return (time.perf_counter() - began) / CALLS

    differences = []
    for _ in range(repeats):
        without = turn()
        with keep_notes():
            differences.append(turn() - without)
    dist.destroy_process_group(group)
    return statistics.median(differences)


def bench_watchdog(bench: WatchdogBench, world_size: int) -> int:
    """Measure and print a few lines, or one JSON object; of several ranks the first one does."""
    config = watchdog_config(bench, world_size)
    check_config(config, world_size)
    torch.set_num_threads(bench.threads)
    memory, _ = new_memory()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with topology(config.parallel) as topo:
        stepper = Stepper(config, topo)
        for repeat in range(UNCOUNTED + bench.repeats):
            # Each comes first as often as the other.
            for noted in (False, True) if repeat % 2 else (True, False):
                with keep_notes(memory) if noted else nullcontext():
                    taken = stepper.step()
                if repeat >= UNCOUNTED:
                    seconds[noted].append(taken)
        notes = read_header(memory).number
        note = note_seconds(bench.repeats)
    step = statistics.median(seconds[False])
    figures = {
        "step_ms": 1e3 * step,
        "ratio": statistics.median(on / off for on, off in zip(seconds[True], seconds[False], strict=True)),
        "notes_a_step": notes,
        "note_us": 1e6 * note,
        "share": notes * note / step,
    }
    if not topo.is_first:
        return 0
    if bench.json:
        print(json.dumps({"bench": vars(bench), "ranks": world_size, **figures}))
        return 0
    print(
        f"{world_size} rank(s), hidden {bench.hidden_size}, {bench.num_layers} layers, {bench.moe_experts} experts, "
        f"sequence {bench.seq_length}, micro-batch {bench.micro_batch_size}, {bench.threads} thread(s)"
    )
    print(f"step {1e3 * step:.1f} ms without notes; with them {figures['ratio']:.4f} times as long, median of pairs")
    print(f"{notes} notes a step at {1e6 * note:.1f} us: {100 * figures['share']:.2f} % of a step")
    return 0
