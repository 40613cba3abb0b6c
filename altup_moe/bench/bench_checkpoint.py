"""`altup-moe bench checkpoint`: our saving and loading beside plain safetensors' of the same bytes, and asynchronously.

Ours flushes, hashes and checks everything: a save is all of `write_checkpoint`, a load opens, compares every hash and
reads into tensors that exist. Plain is `save_file` and one fsync, `load_file` and a copy into the same tensors, which
touches every byte. Both are timed in turn, the one that begins changing every time. Asynchronous saves are timed as
training knows them: real steps of a model of that size, alone and right after a save was started. Likewise a step that
saves a checkpoint into memory (checkpoint.memory_interval), and a load from there beside one from the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from altup_moe.bench.checkpoint_rivals import SavedBothWays, forget, head_of
from altup_moe.bench.memory_checkpoint import memory_loads, memory_steps
from altup_moe.bench.options import CheckpointBench
from altup_moe.bench.stepper import Stepper
from altup_moe.checkpoint.saver import Saver
from altup_moe.checkpoint.state import local_tensors
from altup_moe.checkpoint.store import step_name
from altup_moe.config import CheckpointConfig, ConfigError, ParallelConfig
from altup_moe.model.build import named_tensors
from altup_moe.parallel.machine import memory_bytes
from altup_moe.parallel.start_ranks import environment_with_package
from altup_moe.parallel.topology import topology

COPIES = 3
"""How many checkpoints the disk must have room for."""


@dataclass(frozen=True)
class CheckpointTiming:
    """Time of one operation on `megabytes`: median and extremes in s, the median that it is compared with, the goal."""

    name: str
    megabytes: float
    seconds: float
    least: float
    most: float
    other: float
    goal: float | None

    @property
    def ratio(self) -> float:
        """Ratio of the medians."""
        return self.seconds / self.other


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def timing(name: str, megabytes: float, ours: list[float], other: list[float], goal: float | None) -> CheckpointTiming:
    """The medians and extremes of an operation's seconds."""
    median, beside = statistics.median(ours), statistics.median(other)
    return CheckpointTiming(name, megabytes, median, min(ours), max(ours), beside, goal)


def measure_checkpoint(bench: SavedBothWays, repeats: int) -> list[CheckpointTiming]:
    """Time saving, loading with a cold and with a warm page cache, in turns; the first turn is not counted."""
    names = ("save", "load, cold", "load, warm")
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    for repeat in range(repeats + 1):
        sides = [
            (0, bench.ours, bench.save_ours, bench.load_ours),
            (1, bench.plain, bench.save_plain, bench.load_plain),
        ]
        turn = sides[:: -1 if repeat % 2 else 1]
        taken: dict[str, dict[int, float]] = {name: {} for name in names}
        for _, place, _, _ in turn:
            shutil.rmtree(place, ignore_errors=True)
        for side, _, save, _ in turn:
            os.sync()
            taken["save"][side] = timed(save)
        for name in names[1:]:
            for side, place, _, load in turn:
                if name == "load, cold":
                    forget(place)
                taken[name][side] = timed(load)
                bench.check()
        if repeat:
            for name in names:
                for side in (0, 1):
                    seconds[name][side].append(taken[name][side])
    return [timing(name, bench.bytes / 1e6, *seconds[name], goal=1.3) for name in names]


def measure_asynchronous(bench: SavedBothWays, repeats: int) -> list[CheckpointTiming]:
    """Time how long an asynchronous and a synchronous save block training, and a step during each of them."""
    waited: dict[bool, list[float]] = {False: [], True: []}
    steps: dict[bool, list[float]] = {False: [], True: []}
    root = bench.ours.parent / "saver"
    train = replace(bench.config.train, micro_batch_size=4, global_batch_size=4)
    config = replace(bench.config, train=train)
    with topology(ParallelConfig()) as topo:
        stepper = Stepper(config, topo)
        savers = {
            background: Saver(root, CheckpointConfig(asynchronous=background), topo) for background in (False, True)
        }
        for repeat in range(repeats + 1):
            for background, saver in savers.items():
                shutil.rmtree(root, ignore_errors=True)
                os.sync()
                named = named_tensors(list(stepper.chunks), config, topo)
                saver.start(head_of(config), local_tensors(named, stepper.engine.optimizer), {})
                taken = stepper.step(saver.settle)
                saved = None
                while saver.pending:
                    # Between training steps nothing waits for the thread either.
                    while saver.busy:
                        time.sleep(0.01)
                    saved = saver.advance()
                assert saved is not None
                megabytes = saved.bytes / 1e6
                if repeat:
                    waited[background].append(saved.waited)
                    steps[background].append(taken)
    return [
        timing("asynchronous save, waiting", megabytes, waited[True], waited[False], goal=0.15),
        timing("a step beside it", megabytes, steps[True], steps[False], goal=None),
    ]


def measure_memory(bench: SavedBothWays, repeats: int) -> list[CheckpointTiming]:
    """Time a step that saves a checkpoint into memory beside one that does not, and a load beside the disk's."""
    megabytes, saving, alone = memory_steps(bench, repeats)
    return [
        timing("a step, saved in memory", megabytes, saving, alone, goal=None),
        timing("load from memory", bench.bytes / 1e6, *memory_loads(bench, repeats), goal=None),
    ]


def reshard_peak(bench: SavedBothWays) -> dict[str, float]:
    """Peak megabytes of `altup-moe reshard` in a process of its own, and the goal."""
    bench.save_ours()
    pipeline = "2" if bench.config.model.num_layers % 2 == 0 else "1"
    paths = [str(bench.ours / step_name(1)), str(bench.ours.parent / "resharded")]
    command = [sys.executable, "-P", "-m", "altup_moe", "reshard", *paths, "--pipeline", pipeline, "--json"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment_with_package())
    plan = json.loads(ran.stdout)
    goal = 2 * plan["largest_tensor_bytes"] / 1e6 + 200
    return {"peak_mb": plan["peak_memory_bytes"] / 1e6, "goal_mb": goal, "checkpoint_mb": plan["bytes"] / 1e6}


def _check_room(megabytes: int, directory: Path) -> None:
    """Raise ConfigError where the tensors do not fit into memory, or a few checkpoints not on the disk."""
    memory, free = memory_bytes(), shutil.disk_usage(directory).free
    for what, room in (("memory holds", memory), (f"{directory.parent} has", free / COPIES)):
        if room is not None and megabytes * 1e6 > room:
            raise ConfigError("megabytes", megabytes, f"{what} room for {room / 1e6:,.0f}; less would fit")


@contextmanager
def _scratch(directory: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory or ".", prefix=".bench-checkpoint-") as path:
        yield Path(path)


def bench_checkpoint(options: CheckpointBench) -> int:
    """Measure and print a table, or one JSON object."""
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    with _scratch(options.directory) as directory:
        _check_room(options.megabytes, directory)
        bench = SavedBothWays(directory, options.megabytes)
        rows = measure_checkpoint(bench, options.repeats)
        shutil.rmtree(bench.plain)
        shutil.rmtree(bench.ours)
        rows += measure_asynchronous(bench, options.repeats)
        rows += measure_memory(bench, options.repeats)
        peak = reshard_peak(bench)
    size = bench.bytes / 1e6
    if options.json:
        found = [{**vars(r), "ratio": r.ratio, "mb_per_second": r.megabytes / r.seconds} for r in rows]
        print(json.dumps({"bench": vars(options), "mb": size, "load": load, "rows": found, "reshard": peak}))
        return 0
    print(
        f"{len(bench.specs)} tensors, {size:,.0f} MB (bf16 weights, fp32 copies, two moments), {options.threads} "
        f"thread(s), median of {options.repeats} interleaved turns; load average at the start {load:.1f}"
    )
    print("                               MB/s    ms (min .. max)              beside     ratio   goal")
    for r in rows:
        spread = f"{1e3 * r.seconds:7.0f} ({1e3 * r.least:.0f} .. {1e3 * r.most:.0f})"
        figures = f"{1e3 * r.other:7.0f} ms{r.ratio:9.2f}" + (f"  < {r.goal}" if r.goal else "")
        print(f"  {r.name:<27}{r.megabytes / r.seconds:6.0f}  {spread:<27}{figures}")
    print(f"  altup-moe reshard: peak memory {peak['peak_mb']:.0f} MB  < {peak['goal_mb']:.0f}")
    return 0
