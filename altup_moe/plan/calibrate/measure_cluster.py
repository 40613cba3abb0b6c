"""Describe this machine as a cluster: rates of products, memory and gloo, and a rank's `CpuCostModel`.

As many processes measure at once as there are cores, with one thread each, because ranks share caches and memory.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from altup_moe.config.units import GIB
from altup_moe.parallel.start_ranks import Start
from altup_moe.plan.calibrate.jobs import run_job
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.cpu_cost_model import MESSAGES, CpuCostModel, ForwardBackward

ROUNDS = 2
"""How often everything is measured. The medians of the rounds are less sensitive to a short disturbance."""


def measure_cluster(network: Start | None = None) -> Cluster:
    """Measure this machine. Each process counts as a GPU, and all cores together as a node.

    Args:
        network: starts each rank on a node of its own. The collectives between these ranks are then those between
            nodes, and a node has one rank. None: there is one node, and its collectives stand for the network's too.
    Raises:
        RankError: a rank failed.
    """
    cores = os.cpu_count() or 1
    # The network is the part that is most likely to fail, so it is measured first.
    between = _operation_times(network)
    inside = between if network is None else _operation_times(None)
    alone, busy, found = [], [], []
    for _ in range(ROUNDS):
        alone += run_job(1, "sample")
        busy += run_job(cores, "sample")
        found += run_job(cores, "pieces")
    model = CpuCostModel(
        forward_gflops=_medians([one["forward_gflops"] for one in found]),
        backward_gflops=_medians([one["backward_gflops"] for one in found]),
        pieces_ns=_median_pairs([one["pieces_ns"] for one in found]),
        calls_us=_median_pairs([one["calls_us"] for one in found]),
        operations=inside,
        network=between,
        # Idle neighbours cannot slow a rank down: a sample below 1 was disturbed.
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
        memory_gib=memory / GIB,
        memory_gb_per_s=copied / 1e9,
        node_gb_per_s=_rate(inside["all_reduce"]),
        node_latency_us=inside["all_reduce"][0],
        network_gb_per_s=_rate(between["all_reduce"]),
        network_latency_us=between["all_reduce"][0],
        cpu_cost_model=model,
    )


def _operation_times(start: Start | None) -> dict[str, Sequence[float]]:
    """Microseconds of each collective and message size: the time of the rank that enters last, which does not wait."""
    rounds = [run_job(2, "operations", start=start) for _ in range(ROUNDS)]

    def microseconds(name: str, size: int) -> float:
        calls = [min(pair) for one, other in rounds for pair in zip(one[name][size], other[name][size], strict=True)]
        return statistics.median(calls)

    return {name: [microseconds(name, size) for size in range(len(MESSAGES))] for name in rounds[0][0]}


def _rate(times: Sequence[float]) -> float:
    """10^9 bytes a second, from the two largest messages."""
    return 1e-3 * (MESSAGES[-1] - MESSAGES[-2]) / max(1e-3, times[-1] - times[-2])


def _medians(tables: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*tables, strict=True)]


def _median_pairs(tables: Sequence[dict[str, ForwardBackward]]) -> dict[str, ForwardBackward]:
    medians = {key: _medians([table[key] for table in tables]) for key in tables[0]}
    return {key: (forward, backward) for key, (forward, backward) in medians.items()}
