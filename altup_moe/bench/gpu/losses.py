"""Losses of a run on the GPU against the same run on the CPU."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from altup_moe.bench.gpu.interpreted import NOT_REHEARSED, runs_token_gradients
from altup_moe.bench.gpu.jobs import on_cpu
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import apart, stepped_in_turn
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
    found, interpreted = Found(), runs_token_gradients(torch.device(sizes.device))
    if not interpreted:
        found.notes.append(NOT_REHEARSED)
    runs = loss_runs(sizes)
    with tempfile.TemporaryDirectory() as place:
        here = [replace(run, altup=_by_triton(run.altup, interpreted)) for run in runs.values()]
        gpu = stepped_in_turn(here, sizes.loss_steps, Path(place) / "gpu")
        cpu = stepped_in_turn(runs.values(), sizes.loss_steps, Path(place) / "cpu", on_cpu())
    for name, one, other in zip(runs, gpu, cpu, strict=True):
        what = f"{name}: largest relative difference of {sizes.loss_steps} losses"
        found.figures.append(Figure(what, apart(one, other), at_most=LOSS_GOAL, exact=True))
        found.notes += [f"{name}: {error}" for error in (one.error, other.error) if error]
        found.data[name] = {"gpu": one.losses, "cpu": other.losses}
    return found


def _by_triton(altup: AltUpConfig, interpreted: bool) -> AltUpConfig:
    """With Triton's kernels, where there are blocks to mix and the kernels run."""
    runs = altup.width > 1 and (interpreted or altup.variant != "mhc")
    return replace(altup, kernel="triton") if runs else altup
