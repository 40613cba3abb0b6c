"""What `bench checkpoint` measures of checkpoints in memory: a step that saves one, and a load, beside the disk's."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from altup_moe.bench.checkpoint_rivals import SavedBothWays, forget, head_of
from altup_moe.bench.stepper import Stepper
from altup_moe.checkpoint.memory import MemorySaver
from altup_moe.checkpoint.memory_directory import PREFIX, memory_base
from altup_moe.checkpoint.memory_nodes import Nodes
from altup_moe.checkpoint.state import local_tensors
from altup_moe.checkpoint.store import step_name
from altup_moe.config import CheckpointConfig, ParallelConfig
from altup_moe.model.build import named_tensors
from altup_moe.parallel.topology import topology


@contextmanager
def _in_memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_base(os.environ), prefix=f"{PREFIX}-{os.getuid()}-bench-") as path:
        yield Path(path)


def memory_steps(bench: SavedBothWays, repeats: int) -> tuple[float, list[float], list[float]]:
    """(megabytes, seconds of steps that each save into memory, seconds of steps that do not), taken in turn.

    A saving step waits for all of it, as a run does (checkpoint.memory_interval 1); the first turn is not counted.
    """
    saving, alone, size = [], [], 0
    train = replace(bench.config.train, micro_batch_size=4, global_batch_size=4)
    config = replace(bench.config, train=train)
    with _in_memory() as root, topology(ParallelConfig()) as topo:
        stepper = Stepper(config, topo)
        saver = MemorySaver(root, CheckpointConfig(), topo, Nodes.of([""]), None)
        for repeat in range(repeats + 1):
            plain = stepper.step()
            began = time.perf_counter()
            named = named_tensors(list(stepper.chunks), config, topo)
            saver.start(head_of(config, repeat + 1), local_tensors(named, stepper.engine.optimizer), {})
            stepper.step(saver.settle)
            saved = saver.finish()
            taken = time.perf_counter() - began
            assert saved is not None
            if repeat:
                saving.append(taken)
                alone.append(plain)
                size = saved.bytes
    return size / 1e6, saving, alone


def memory_loads(bench: SavedBothWays, repeats: int) -> tuple[list[float], list[float]]:
    """(seconds of loads from memory, of loads from the disk with a cold page cache), taken in turn; hashes checked."""
    disk = bench.ours
    memory: list[float] = []
    cold: list[float] = []
    bench.save_ours()
    with _in_memory() as root:
        shutil.copytree(disk / step_name(1), root / step_name(1))
        for repeat in range(repeats + 1):
            for place, seconds in ((root, memory), (disk, cold)):
                bench.ours = place
                forget(disk)
                began = time.perf_counter()
                bench.load_ours()
                taken = time.perf_counter() - began
                bench.check()
                if repeat:
                    seconds.append(taken)
    bench.ours = disk
    return memory, cold
