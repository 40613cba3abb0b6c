"""`altup-moe bench checkpoint`: our saving and loading beside plain safetensors' of the same bytes, and asynchronously.

Ours flushes, hashes and checks everything: a save is all of `write_checkpoint`, a load opens, compares every hash and
reads into tensors that exist. Plain is `save_file` and one fsync, `load_file` and a copy into the same tensors, which
touches every byte. Both are timed in turn, the one that begins changing every time. Asynchronous saves are timed as
training knows them: real steps of a model of that size, alone and right after a save was started.
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
from safetensors.torch import load_file, save_file

from altup_moe.bench.options import CheckpointBench
from altup_moe.bench.stepper import Stepper
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.saver import Saver
from altup_moe.checkpoint.slices import whole
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import held_tensors
from altup_moe.checkpoint.store import step_name
from altup_moe.checkpoint.tensors import DTYPES, items
from altup_moe.checkpoint.write import Form, whole_tensors, write_checkpoint
from altup_moe.config import AltUpConfig, CheckpointConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig
from altup_moe.config.files import fsync
from altup_moe.model.build import named_tensors
from altup_moe.parallel.parameter_mapping import global_shapes, is_buffer
from altup_moe.parallel.topology import topology

LARGE = 128
"""Megabytes from which on the model is as wide as a real, small one."""
RESHARD = Path(__file__).parents[2] / "tools" / "reshard.py"


@dataclass(frozen=True)
class Row:
    """One operation on `megabytes`: its medians and extremes in seconds, what it is compared with, and the goal."""

    name: str
    megabytes: float
    seconds: float
    least: float
    most: float
    other: float
    goal: float | None

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.seconds / self.other


def model_of(megabytes: int) -> tuple[RunConfig, dict[str, Form]]:
    """An MoE run whose bf16 weights, fp32 copies and two moments have about so many megabytes, and all its tensors."""
    hidden, vocabulary = (256, 32_000) if megabytes >= LARGE else (32, 256)
    config = RunConfig(
        model=ModelConfig(
            hidden_size=hidden,
            num_attention_heads=8,
            num_query_groups=4,
            ffn_hidden_size=4 * hidden,
            vocab_size=vocabulary,
        ),
        altup=AltUpConfig(width=2),
        moe=MoEConfig(num_experts=8, ffn_hidden_size=2 * hidden),
    )
    forms: dict[str, Form] = {}
    for layers in range(1, 10_000):
        config = replace(config, model=replace(config.model, num_layers=layers))
        larger = _forms(config)
        if forms and size_of(larger) > 1e6 * megabytes:
            break
        chosen, forms = config, larger
    return chosen, forms


def _forms(config: RunConfig) -> dict[str, Form]:
    forms = {}
    for name, shape in global_shapes(config).items():
        full = ".altup." in name or is_buffer(name)
        forms[f"weights/{name}"] = Form(shape, "F32" if full else "BF16")
        kinds = () if is_buffer(name) else ("exp_avg", "exp_avg_sq", *(() if full else ("main",)))
        forms |= {f"{kind}/{name}": Form(shape, "F32") for kind in kinds}
    return forms


def size_of(forms: dict[str, Form]) -> int:
    """Bytes of all tensors."""
    return sum(torch.Size(form.shape).numel() * DTYPES[form.dtype].itemsize for form in forms.values())


def head_of(config: RunConfig, step: int = 1) -> Manifest:
    """A manifest without files and tensors."""
    return Manifest(step, 8 * step, 0, step, 8 * step, 1, "", config.to_dict())


def forget(directory: Path) -> None:
    """Ask the system to drop a directory's flushed files from its memory."""
    for path in directory.rglob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


class Bench:
    """The same tensors saved and loaded both ways below a directory."""

    def __init__(self, directory: Path, megabytes: int) -> None:
        self.config, self.forms = model_of(megabytes)
        self.bytes = size_of(self.forms)
        draw = torch.Generator().manual_seed(0)
        self.tensors = {n: torch.randn(f.shape, generator=draw).to(DTYPES[f.dtype]) for n, f in self.forms.items()}
        self.targets = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.ours, self.plain = directory / "ours", directory / "plain"

    def save_ours(self) -> None:
        """Everything: hashes, fsync, manifest, check, rename."""
        plan = whole_tensors(self.forms)
        head = head_of(self.config)
        write_checkpoint(self.ours, head, self.forms, plan, lambda name, box: items(self.tensors[name]), threads=2)

    def save_plain(self) -> None:
        """The library's file, flushed."""
        self.plain.mkdir()
        save_file(self.tensors, self.plain / "all.safetensors")
        fsync(self.plain / "all.safetensors")

    def load_ours(self) -> None:
        """Open, verify, read."""
        with Checkpoint(self.ours / step_name(1)) as checkpoint:
            checkpoint.verify()
            for name, tensor in self.targets.items():
                checkpoint.read_into(name, whole(tensor.shape), items(tensor))

    def load_plain(self) -> None:
        """The library's tensors, copied."""
        for name, tensor in load_file(self.plain / "all.safetensors").items():
            self.targets[name].copy_(tensor)

    def check(self) -> None:
        """The last load gave the bits that were saved."""
        for name, tensor in self.tensors.items():
            assert torch.equal(tensor, self.targets[name]), name
            self.targets[name].zero_()


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def row(name: str, megabytes: float, ours: list[float], other: list[float], goal: float | None) -> Row:
    """Medians."""
    return Row(name, megabytes, statistics.median(ours), min(ours), max(ours), statistics.median(other), goal)


def measure(bench: Bench, repeats: int) -> list[Row]:
    """Saving, loading what the system has forgotten, loading what it holds in memory; one turn is not counted."""
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
    return [row(name, bench.bytes / 1e6, *seconds[name], goal=1.3) for name in names]


def measure_asynchronous(bench: Bench, repeats: int) -> list[Row]:
    """How long a save keeps training waiting, over a synchronous one; and a step beside it, over a step alone."""
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
                saver.start(head_of(config), held_tensors(named, stepper.engine.optimizer), {})
                taken = stepper.step(saver.settle)
                saved = None
                while saver.pending:
                    # As between training's steps: nobody waits for the thread.
                    while saver.busy:
                        time.sleep(0.01)
                    saved = saver.advance()
                assert saved is not None
                megabytes = saved.bytes / 1e6
                if repeat:
                    waited[background].append(saved.waited)
                    steps[background].append(taken)
    return [
        row("asynchronous save, waiting", megabytes, waited[True], waited[False], goal=0.15),
        row("a step beside it", megabytes, steps[True], steps[False], goal=None),
    ]


def reshard_peak(bench: Bench) -> dict[str, float] | None:
    """Peak megabytes of tools/reshard.py in a process of its own, and the goal; None if there is no such tool here."""
    if not RESHARD.is_file():
        return None
    bench.save_ours()
    pipeline = "2" if bench.config.model.num_layers % 2 == 0 else "1"
    command = [sys.executable, str(RESHARD), str(bench.ours / step_name(1)), str(bench.ours.parent / "resharded")]
    ran = subprocess.run([*command, "--pipeline", pipeline, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    plan = json.loads(ran.stdout)
    goal = 2 * plan["largest_tensor_bytes"] / 1e6 + 200
    return {"peak_mb": plan["peak_memory_bytes"] / 1e6, "goal_mb": goal, "checkpoint_mb": plan["bytes"] / 1e6}


@contextmanager
def _scratch(directory: str | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=directory or ".", prefix=".bench-checkpoint-") as path:
        yield Path(path)


def bench_checkpoint(options: CheckpointBench) -> int:
    """Measure and print a table, or one JSON object."""
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    with _scratch(options.directory) as directory:
        bench = Bench(directory, options.megabytes)
        rows = measure(bench, options.repeats)
        shutil.rmtree(bench.plain)
        shutil.rmtree(bench.ours)
        rows += measure_asynchronous(bench, options.repeats)
        peak = reshard_peak(bench)
    size = bench.bytes / 1e6
    if options.json:
        found = [{**vars(r), "ratio": r.ratio, "mb_per_second": r.megabytes / r.seconds} for r in rows]
        print(json.dumps({"bench": vars(options), "mb": size, "load": load, "rows": found, "reshard": peak}))
        return 0
    print(
        f"{len(bench.forms)} tensors, {size:,.0f} MB (bf16 weights, fp32 copies, two moments), {options.threads} "
        f"thread(s), median of {options.repeats} interleaved turns; load average at the start {load:.1f}"
    )
    print("                               MB/s    ms (min .. max)              beside     ratio   goal")
    for r in rows:
        spread = f"{1e3 * r.seconds:7.0f} ({1e3 * r.least:.0f} .. {1e3 * r.most:.0f})"
        figures = f"{1e3 * r.other:7.0f} ms{r.ratio:9.2f}" + (f"  < {r.goal}" if r.goal else "")
        print(f"  {r.name:<27}{r.megabytes / r.seconds:6.0f}  {spread:<27}{figures}")
    if peak:
        print(f"  tools/reshard.py: peak memory {peak['peak_mb']:.0f} MB  < {peak['goal_mb']:.0f}")
    return 0
