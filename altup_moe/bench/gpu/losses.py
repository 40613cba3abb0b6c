"""Losses of a run on the GPU against the same run on the CPU."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from altup_moe.bench.gpu.jobs import on_cpu
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import Stepped, stepped
from altup_moe.config import AltUpConfig, RunConfig

LOSS_GOAL = 1e-4
"""Largest relative difference of a loss, as between layouts."""


def loss_runs(sizes: Sizes) -> dict[str, RunConfig]:
    """The plain model, the paper's stream, and one with a matrix for each token around branches."""
    base = run_of(sizes.losses, 1, "fp32")
    return {
        "K = 1": base,
        "altup, K = 4": replace(base, altup=AltUpConfig(4)),
        "hc around branches, K = 4": replace(base, altup=AltUpConfig(4, "hc", level="branch")),
        "mhc around branches, K = 4": replace(base, altup=AltUpConfig(4, "mhc", level="branch")),
    }


def losses(sizes: Sizes) -> Found:
    """The largest relative difference over the steps, for each stream. In a rehearsal Triton's interpreter stands for
    the GPU."""
    found = Found()
    for name, run in loss_runs(sizes).items():
        here = replace(run, altup=replace(run.altup, kernel="triton" if run.altup.width > 1 else "auto"))
        with tempfile.TemporaryDirectory() as place:
            (gpu,) = stepped(here, sizes.loss_steps, Path(place) / "gpu")
            (cpu,) = stepped(run, sizes.loss_steps, Path(place) / "cpu", environment=on_cpu())
        what = f"{name}: largest relative difference of {sizes.loss_steps} losses"
        found.figures.append(Figure(what, apart(gpu, cpu), at_most=LOSS_GOAL, exact=True))
        found.data[name] = {"gpu": gpu.losses, "cpu": cpu.losses}
    return found


def apart(one: Stepped, other: Stepped) -> float:
    """Largest relative difference of their losses."""
    return max(abs(a / b - 1) for a, b in zip(one.losses, other.losses, strict=True))
