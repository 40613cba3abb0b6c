"""What `altup-moe bench gpu` asks the planner, which benchmarks do not know."""

from __future__ import annotations

import math
from dataclasses import replace

from altup_moe.bench.gpu.planned import CardRates, Planner
from altup_moe.config import RunConfig

BASES = {"H200": "h200x8", "H100": "h100x8", "A100": "a100x8", "GB200": "gb200"}
"""Part of a card's name -> shipped cluster that has its data sheet and its links, which one card cannot measure."""
SMALL_EXPERTS = "GPT-OSS 120B"
HALVINGS = 40


def peak_bytes(config: RunConfig) -> float:
    """Planned peak of a run on one GPU."""
    from altup_moe.plan.cluster import load_cluster
    from altup_moe.plan.step import plan_step

    return plan_step(config, load_cluster(BASES["H100"]), 1).peak_memory


def published_error(relative: float) -> float:
    """Planned over published throughput - 1 of the published run with small experts.

    Args:
        relative: share of the peak that its experts' products reach, over that of large ones. Time of all products is
            then that of one efficiency between both.
    """
    from altup_moe.model.flops import model_products
    from altup_moe.plan.cluster import load_cluster
    from altup_moe.plan.published import PUBLISHED_RUNS
    from altup_moe.plan.step import plan_step

    (run,) = (one for one in PUBLISHED_RUNS if one.name == SMALL_EXPERTS)
    cluster, products = load_cluster(run.cluster), model_products(run.config)
    experts = products.experts / products.total
    slower = experts / relative + 1 - experts
    return plan_step(run.config, replace(cluster, efficiency=cluster.efficiency / slower), run.gpus).mfu / run.mfu - 1


def cluster_file(card: CardRates) -> str:
    """A cluster file of nodes with eight of the card: measured rates of the card, links of the data sheet.

    The efficiency is the one with which the planned steps take as long as the measured ones, in the mean; without such
    steps, that of a large product.
    """
    from altup_moe.plan.cluster import Cluster, cluster_yaml, load_cluster
    from altup_moe.plan.step import plan_step

    base = next((name for part, name in BASES.items() if part in card.card), None)
    cluster = replace(load_cluster(base or BASES["H100"]), memory_gib=card.memory_gib)
    cluster = replace(cluster, memory_gb_per_s=card.copy_bytes / 1e9)
    if base is None:
        cluster = replace(cluster, peak_tflops_bf16=card.bf16_flops / 1e12, peak_tflops_fp32=card.fp32_flops / 1e12)

    def slower_than_measured(efficiency: float) -> bool:
        trial: Cluster = replace(cluster, efficiency=efficiency)
        return sum(math.log(plan_step(run, trial, 1).seconds / seconds) for run, seconds in card.steps) > 0

    efficiency = min(1.0, card.bf16_flops / cluster.peak("bf16"))
    if card.steps:
        low, high = 0.001, 1.0
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if slower_than_measured(middle) else (low, middle)
        efficiency = high
    how = "fitted to the steps that it took" if card.steps else "of a large product"
    peaks = "measured, of large products" if base is None else f"as in {base}"
    comments = [
        f"# Measured by altup-moe bench gpu on {card.card}:",
        f"# memory, its bandwidth (a copy) and efficiency ({how}).",
        f"# Peaks: {peaks}. Links between cards: as in {base or BASES['H100']}.",
    ]
    _, *lines = cluster_yaml(replace(cluster, efficiency=efficiency)).splitlines()
    return "\n".join([*comments, *lines]) + "\n"


PLANNER = Planner(peak_bytes, published_error, cluster_file)
