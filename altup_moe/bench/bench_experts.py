"""`altup-moe bench experts`: a sparse feed-forward, forward and backward, over a dense one of equal active FLOPs.

Every contender takes one turn after another on the same tokens, so that a change of the machine's speed meets all of
them. Started by torchrun, our layers spread their experts over the ranks; the dense MLP and transformers' block work
on each rank's tokens alone. A turn lasts until the slowest rank is done.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

from altup_moe.bench.expert_rivals import (
    DENSE_MLP,
    OUR_LAYER,
    LayerContender,
    PlannedRouting,
    layer_config,
    layer_contenders,
    missing,
    planned_input,
)
from altup_moe.bench.options import ExpertsBench
from altup_moe.bench.stepper import wait_for_gpu
from altup_moe.config import ParallelConfig
from altup_moe.config.checks import check_config
from altup_moe.parallel.topology import Topology, topology

GOALS: dict[PlannedRouting, float] = {"balanced": 1.10, "skewed": 1.20}
"""Goals: time of the torch backend over the dense MLP's, at most (one rank)."""


@dataclass(frozen=True)
class ExpertsRow:
    """One contender under one routing: median and fastest turn, and the median's ratio to the dense MLP's."""

    name: str
    routing: PlannedRouting
    median_ms: float
    min_ms: float
    ratio: float


def _turn(contender: LayerContender, x: torch.Tensor, grad: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass, of the slowest rank."""
    for parameter in contender.module.parameters():
        parameter.grad = None
    x = x.detach().requires_grad_()
    dist.barrier()
    wait_for_gpu()
    started = time.perf_counter()
    contender.forward(x).backward(grad)
    wait_for_gpu()
    taken = torch.tensor(time.perf_counter() - started, dtype=torch.float64, device=x.device)
    dist.all_reduce(taken, op=dist.ReduceOp.MAX)
    return taken.item()


def measure_experts(bench: ExpertsBench, topo: Topology) -> list[ExpertsRow]:
    """Time all contenders under both routings, in turns."""
    torch.set_num_threads(bench.threads)
    dtype = torch.bfloat16 if bench.dtype == "bf16" else torch.float32
    inputs = {routing: planned_input(bench, routing).to(topo.device, dtype) for routing in GOALS}
    grad = torch.randn(inputs["balanced"].shape, generator=torch.Generator().manual_seed(1)).to(topo.device, dtype)
    found = layer_contenders(bench, topo)
    seconds: dict[tuple[str, PlannedRouting], list[float]] = {(c.name, routing): [] for routing in GOALS for c in found}
    for repeat in range(bench.repeats + 1):
        for routing, x in inputs.items():
            for contender in found:
                taken = _turn(contender, x, grad)
                if repeat:
                    seconds[contender.name, routing].append(taken)
    base = {routing: statistics.median(seconds[DENSE_MLP, routing]) for routing in GOALS}
    return [
        ExpertsRow(name, routing, 1e3 * statistics.median(s), 1e3 * min(s), statistics.median(s) / base[routing])
        for (name, routing), s in seconds.items()
    ]


def bench_experts(bench: ExpertsBench, world_size: int) -> int:
    """Measure and print a table and the goals, or one JSON object, on rank 0."""
    check_config(layer_config(bench, "torch", None, world_size), world_size)
    before = os.getloadavg()[0]
    with topology(ParallelConfig(expert=world_size)) as topo:
        rows = measure_experts(bench, topo)
        first = topo.is_first
    if not first:
        return 0
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "ranks": world_size, "load": before}
        print(json.dumps({"bench": vars(bench), **machine, "rows": [vars(r) for r in rows], "missing": missing()}))
    else:
        print("\n".join(experts_table(bench, world_size, before, rows)))
    return 0


def experts_table(bench: ExpertsBench, ranks: int, load: float, rows: list[ExpertsRow]) -> list[str]:
    """Lines of a table: a contender per row, a routing per column; then whether the goals are met."""
    lines = [
        f"hidden {bench.hidden_size}, expert ffn {bench.ffn_hidden_size}, {bench.moe_experts} experts top-2, "
        f"{bench.tokens} tokens a rank, {ranks} rank(s), {bench.dtype}, {bench.threads} thread(s) a rank, "
        f"median of {bench.repeats} interleaved forward + backward passes, load before {load:.1f}",
        f"{'':<38}{'balanced ms':>12}{'min':>8}{'x dense':>9}   {'skewed ms':>12}{'min':>8}{'x dense':>9}",
    ]
    by_name = {(row.name, row.routing): row for row in rows}
    for name in dict.fromkeys(row.name for row in rows):
        figures = [
            f"{r.median_ms:12.1f}{r.min_ms:8.1f}{r.ratio:9.3f}" for r in (by_name[name, routing] for routing in GOALS)
        ]
        lines.append(f"{name:<38}{'   '.join(figures)}")
    lines += missing()
    if ranks == 1:
        for routing, limit in GOALS.items():
            ratio = by_name[OUR_LAYER, routing].ratio
            met = "met    " if ratio <= limit else "not met"
            lines.append(f"{met} {ratio:.3f}  {OUR_LAYER}, {routing}: <= {limit:.2f}")
    return lines
