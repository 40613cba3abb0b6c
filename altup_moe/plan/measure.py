"""This machine as a cluster file: products, memory, gloo between two processes, and an unfused rank's pieces.

Everything is measured by as many processes at once as there are cores, one thread each, since ranks share caches and
memory. The one part of planning, with `plan.compare`, that runs torch.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from altup_moe.plan.cluster import Cluster
from altup_moe.plan.cpu_cost_model import MESSAGES, Pair, Unfused
from altup_moe.plan.ranks import Start, here, on_ranks

ROUNDS = 2
"""Times that everything is measured: medians stand against a moment's disturbance."""


def measure(network: Start | None = None) -> Cluster:
    """Every process counts as a GPU, all cores as a node.

    Args:
        network: starts processes on nodes of their own, whose collectives are then those between nodes, and a node has
            one rank. None: there is one node, and its own figures stand for the network's too.
    """
    cores = os.cpu_count() or 1
    # What may not work is tried first.
    between = _operation_times(network or here)
    inside = between if network is None else _operation_times(here)
    alone, busy, found = [], [], []
    for _ in range(ROUNDS):
        alone += on_ranks(1, "sample")
        busy += on_ranks(cores, "sample")
        found += on_ranks(cores, "pieces")
    unfused = Unfused(
        forward_gflops=_medians([one["forward_gflops"] for one in found]),
        backward_gflops=_medians([one["backward_gflops"] for one in found]),
        pieces_ns=_median_pairs([one["pieces_ns"] for one in found]),
        calls_us=_median_pairs([one["calls_us"] for one in found]),
        operations=inside,
        network=between,
        # A rank is never the slower for idle neighbours; a sample that says so was disturbed.
        lone=max(1.0, statistics.median(busy) / min(alone)),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / cores
    fp32, bf16, copied = _medians([one["large"] for one in found])
    return Cluster(
        name="this machine",
        gpus_per_node=cores if network is None else 1,
        peak_tflops_bf16=bf16 / 1e12,
        peak_tflops_fp32=fp32 / 1e12,
        efficiency=1.0,
        memory_gib=memory / 2**30,
        memory_gb_per_s=copied / 1e9,
        node_gb_per_s=_rate(inside["all_reduce"]),
        node_latency_us=inside["all_reduce"][0],
        network_gb_per_s=_rate(between["all_reduce"]),
        network_latency_us=between["all_reduce"][0],
        unfused=unfused,
    )


def _operation_times(start: Start) -> dict[str, Sequence[float]]:
    """A call takes what it takes the rank that comes last: the other one's time has waiting in it."""
    rounds = [on_ranks(2, "operations", start=start) for _ in range(ROUNDS)]

    def microseconds(name: str, size: int) -> float:
        calls = [min(pair) for one, other in rounds for pair in zip(one[name][size], other[name][size], strict=True)]
        return statistics.median(calls)

    return {name: [microseconds(name, size) for size in range(len(MESSAGES))] for name in rounds[0][0]}


def _rate(times: Sequence[float]) -> float:
    """10^9 bytes a second of large messages."""
    return 1e-3 * (MESSAGES[-1] - MESSAGES[-2]) / max(1e-3, times[-1] - times[-2])


def _medians(tables: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*tables, strict=True)]


def _median_pairs(tables: Sequence[dict[str, Pair]]) -> dict[str, Pair]:
    medians = {key: _medians([table[key] for table in tables]) for key in tables[0]}
    return {key: (forward, backward) for key, (forward, backward) in medians.items()}


def as_yaml(cluster: Cluster) -> str:
    """The file's text; numbers with four figures."""
    lines = ["# Measured by tools/plan.py measure: medians, one thread a process, every core busy."]
    for key, value in vars(cluster).items():
        if key not in ("name", "unfused"):
            lines.append(f"{key}: {_figures(value)}")
    if cluster.unfused is not None:
        lines.append("unfused:  # altup_moe/plan/cpu_cost_model.py says what each is")
        for key, value in vars(cluster.unfused).items():
            if isinstance(value, dict):
                lines.append(f"  {key}:")
                lines += [f"    {name}: {_figures(pair)}" for name, pair in value.items()]
            else:
                lines.append(f"  {key}: {_figures(value)}")
    return "\n".join(lines) + "\n"


def _figures(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return "[" + ", ".join(_figures(one) for one in value) + "]"
    # YAML takes 1e-05 for a word.
    text = f"{float(f'{value:.4g}')}"
    return text if "." in text else text.replace("e", ".0e")
