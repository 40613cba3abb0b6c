"""What checks have found beside the planner's figures. The planner is another part: its functions are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from altup_moe.bench.gpu.results import Figure, Found, ResultFile
from altup_moe.bench.gpu.sizes import SIZES, Sizes, memory_runs, step_runs
from altup_moe.config import RunConfig
from altup_moe.config.units import GIB

MEMORY_GOAL = 0.10
PUBLISHED_GOAL = 0.15


@dataclass(frozen=True)
class CardRates:
    """What one card does. ``steps``: (run, measured seconds of its step)."""

    card: str
    memory_gib: float
    bf16_flops: float
    fp32_flops: float
    copy_bytes: float
    """Bytes a second of a large copy, read and written."""
    steps: tuple[tuple[RunConfig, float], ...] = ()


@dataclass(frozen=True)
class Planner:
    """What is asked of the planner.

    ``peak_bytes``: planned peak of a run on one rank. ``published_error``: planned over published throughput - 1 of the
    run with small experts, where these reach so many times the share of the peak that large products reach.
    ``cluster``: a cluster file's text.
    """

    peak_bytes: Callable[[RunConfig], float]
    published_error: Callable[[float], float]
    cluster: Callable[[CardRates], str]


def compared(name: str, found: Found, planner: Planner) -> None:
    """Add the figures of a check that is compared with the planner."""
    if name == "memory":
        runs = memory_runs(_sizes(found.data).memory)
        found.figures += [_peak(run, planner.peak_bytes(runs[run]), peak) for run, peak in found.data["peaks"].items()]
    elif name == "efficiency":
        found.figures += _published(found.data, planner)


def _sizes(data: Mapping[str, Any]) -> Sizes:
    return SIZES[data["sizes"]]


def _peak(run: str, planned: float, measured: float) -> Figure:
    what = f"{run}: planned {planned / GIB:.2f} GiB, measured {measured / GIB:.2f} GiB, apart by"
    return Figure(what, abs(planned / measured - 1), at_most=MEMORY_GOAL)


def _published(data: Mapping[str, Any], planner: Planner) -> list[Figure]:
    relative = data["small_expert"] / data["large_expert"]
    without, with_it = planner.published_error(1.0), planner.published_error(relative)
    return [
        Figure("small experts' share of the peak over large ones'", relative),
        Figure("GPT-OSS 120B, planned over published - 1, without it", without),
        Figure("GPT-OSS 120B, planned over published - 1, with it, off by", abs(with_it), at_most=PUBLISHED_GOAL),
    ]


def cluster_text(file: ResultFile, planner: Planner) -> str | None:
    """The card as a cluster file; None until its rates are measured."""
    if "rates" not in (data := _data(file, "efficiency")):
        return None
    steps = []
    if measured := _data(file, "steps"):
        for shape in _sizes(measured).steps:
            steps.append((step_runs(shape)["K = 1"], measured["seconds"][shape.name]["K = 1"]))
    rates, machine = data["rates"], file.machine
    card = CardRates(
        card=machine["card"] or "no GPU (a rehearsal on a CPU)",
        memory_gib=machine.get("memory_gib", 1.0),
        bf16_flops=rates["bf16_flops"],
        fp32_flops=rates["fp32_flops"],
        copy_bytes=rates["copy_bytes"],
        steps=tuple(steps),
    )
    return planner.cluster(card)


def _data(file: ResultFile, name: str) -> Mapping[str, Any]:
    return file.results[name].found.data if name in file.results else {}
