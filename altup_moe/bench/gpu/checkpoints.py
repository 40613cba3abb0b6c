"""Checkpoints of a GPU: to a CPU and back, and a run that is cut and goes on."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from altup_moe.bench.gpu.jobs import on_cpu
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import Stepped, stepped
from altup_moe.checkpoint.compare import counter_differences, tensor_differences
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import RunConfig

CUT, END = 3, 6


def resume(sizes: Sizes) -> Found:
    """Losses of a run that is cut, against those of one left alone; and of that one, run twice.

    In bf16, with fp32 copies in the optimizer, and with dropout, whose random streams are saved too.
    """
    run = run_of(sizes.small, 4)
    run = replace(run, model=replace(run.model, hidden_dropout=0.1))
    with tempfile.TemporaryDirectory() as place:
        whole, again = (stepped(run, END, Path(place) / name)[0] for name in ("whole", "again"))
        first = stepped(run, CUT, Path(place) / "cut", save=True)[0]
        second = stepped(run, END, Path(place) / "cut")[0]
    cut = Stepped(first.losses + second.losses, first.grad_norms + second.grad_norms, 0.0)
    found = Found(
        [
            Figure("steps that differ when the same run is run twice", differing(whole, again), at_most=0, exact=True),
            Figure("steps that differ when it is cut and resumed", differing(whole, cut), at_most=0, exact=True),
        ]
    )
    if differing(whole, again):
        found.notes.append("The same run twice differs: something here adds up in an order of its own.")
    return found


def differing(one: Stepped, other: Stepped) -> int:
    """Steps whose loss or gradient norm is not bit for bit the same."""
    pairs = zip(one.losses, one.grad_norms, strict=True), zip(other.losses, other.grad_norms, strict=True)
    return sum(a != b for a, b in zip(*pairs, strict=True))


def round_trip(sizes: Sizes) -> Found:
    """What differs after a CPU, and then the GPU again, has loaded and saved a checkpoint; and in the next steps."""
    run = run_of(sizes.small, 4)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        stepped(run, CUT, root / "gpu", save=True)
        stepped(branch(run, root / "gpu"), CUT, root / "cpu", save=True, environment=on_cpu())
        stepped(branch(run, root / "cpu"), CUT, root / "back", save=True)
        figures = [_differences("GPU to CPU", root / "gpu", root / "cpu")]
        figures.append(_differences("GPU to CPU and back", root / "gpu", root / "back"))
        on, back = (stepped(branch(run, root / name), END, root / f"{name}-on")[0] for name in ("gpu", "back"))
    figures.append(Figure("steps after it that differ", differing(on, back), at_most=0, exact=True))
    return Found(figures)


def branch(run: RunConfig, source: Path) -> RunConfig:
    """The same run, going on from another's checkpoint."""
    return replace(run, checkpoint=replace(run.checkpoint, branch_from=str(source)))


def _differences(what: str, one: Path, other: Path) -> Figure:
    with Checkpoint(find_checkpoint(one)) as a, Checkpoint(find_checkpoint(other)) as b:
        count = len(tensor_differences(a, b)) + len(counter_differences(a.manifest, b.manifest))
        tensors = len(a.manifest.tensors)
    return Figure(f"{what}: tensors and counters of {tensors} that differ", count, at_most=0, exact=True)
