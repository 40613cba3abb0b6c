"""How TensorBoard, Weights & Biases and MLflow name and arrange a step's numbers: GROUP/NAME, a page a group."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from altup_moe.altup.shape import is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.report.metric_groups import GROUPS, METRICS
from altup_moe.train.metrics import RoutingLoads, StepMetrics

EXPERT_SCALARS = 256
"""The most curves of single experts, over all layers; of more experts there are only those of layers, and pictures."""
CELL = 12
"""Pixels of an expert's square in a picture."""
UNDER, EVEN, OVER = (33, 102, 172), (242, 242, 242), (194, 87, 12)
"""Colours of a quarter of the mean load or less, of the mean, and of four times the mean or more: those of reports."""

_PATHS = {metric.key: metric.path for metric in METRICS}


def tracked(metrics: StepMetrics) -> dict[str, float]:
    """Name in trackers -> value, of all numbers of a step, in the units of its record.

    A key outside `METRICS` keeps its name (scores of tasks have a slash of their own).
    """
    values = {_PATHS.get(key, key): float(value) for key, value in metrics.to_dict().items() if key != "step"}
    return values | (routing_scalars(metrics.routing) if metrics.routing else {})


def routing_scalars(loads: RoutingLoads) -> dict[str, float]:
    """Load imbalance and dropped share of every layer with experts; of few also each one's load over the mean."""
    found: dict[str, float] = {}
    few = sum(map(len, loads.routes)) <= EXPERT_SCALARS
    for layer, (routes, dropped) in enumerate(zip(loads.routes, loads.dropped, strict=True)):
        total = sum(routes)
        if not total:
            continue
        ratios = [route * len(routes) / total for route in routes]
        name = f"routing/layer_{layer:02}"
        found[f"{name}/load_imbalance"] = max(ratios)
        found[f"{name}/dropped_share"] = dropped / total
        if few:
            found |= {f"{name}/expert_{expert:02}": ratio for expert, ratio in enumerate(ratios)}
    return found


def load_picture(loads: RoutingLoads) -> NDArray[np.uint8]:
    """Heat map of the loads over their layer's mean: [layers with experts * CELL, experts * CELL, 3], 0 to 255."""
    layers = [np.asarray(routes) for routes in loads.routes if sum(routes)]
    if not layers:
        return np.full((CELL, CELL, 3), EVEN, dtype=np.uint8)
    ratios_LE = np.stack([routes / routes.mean() for routes in layers])
    place_LE1 = (np.log2(np.maximum(ratios_LE, 1e-9)) / 2).clip(-1, 1)[..., None]
    ends = np.where(place_LE1 < 0, np.array(UNDER), np.array(OVER))
    cells_LE3 = np.array(EVEN) + (ends - np.array(EVEN)) * np.abs(place_LE1)
    return cells_LE3.round().astype(np.uint8).repeat(CELL, axis=0).repeat(CELL, axis=1)


def tensorboard_pages(config: RunConfig) -> dict[str, dict[str, list[Any]]]:
    """The custom scalars of TensorBoard: page -> chart -> what it draws (tags are regular expressions)."""
    pages: dict[str, dict[str, list[Any]]] = {}
    charts = {
        "loss": {"language model": ["loss/lm"], "with the routers'": ["loss/total"],
                 "routers": ["loss/balance", "loss/router_z"]},
        "validation": {"loss": ["validation/loss"], "bits per byte": ["validation/bits_per_byte"]},
        "eval": {},
        "optimizer": {"gradient norm": ["optimizer/grad_norm"], "learning rate": ["optimizer/learning_rate"],
                      "skipped steps": ["optimizer/skipped_steps"]},
        "throughput": {"tokens a second": ["throughput/tokens_per_second"], "step, s": ["throughput/step_seconds"],
                       "TFLOP/s": ["throughput/tflops_per_second"], "slowest rank": ["throughput/slowest_score"],
                       "slow rank": ["throughput/slow_rank"], "memory, GiB": ["throughput/memory_gib"],
                       "slowest link": ["throughput/slowest_link_score"]},
        "routing": {},
        "overlap": {"exchange, ms": ["overlap/exchange_ms", "overlap/exposed_ms"],
                    "mixing, ms": ["overlap/mixing_ms", "overlap/mixing_hidden_ms"]},
    }  # fmt: skip
    if config.moe.num_experts:
        charts["routing"] = _routing_charts(config)
    if config.train.eval_tasks:
        charts["eval"] = {"scores, %": ["eval/.+"]}
    for group, inside in charts.items():
        if inside:
            drawn = {chart: ["Multiline", [f"^{tag}$" for tag in tags]] for chart, tags in inside.items()}
            pages[GROUPS[group]] = drawn
    return pages


def _routing_charts(config: RunConfig) -> dict[str, list[str]]:
    m, experts = config.model, config.moe.num_experts
    stacks = [range(m.num_layers), range(m.decoder_layers if m.encoder_decoder else 0)]
    layers = [
        offset + layer
        for offset, stack in zip((0, m.num_layers), stacks, strict=True)
        for layer in stack
        if is_moe_layer(layer, experts, config.moe.layer_freq)
    ]
    found = {
        "fullest expert over the mean, by layer": [r"routing/(layer_\d+/)?load_imbalance"],
        "dropped share, by layer": [r"routing/(layer_\d+/)?dropped_share"],
    }
    if len(layers) * experts <= EXPERT_SCALARS:
        found |= {f"experts of layer {layer}": [rf"routing/layer_{layer:02}/expert_\d+"] for layer in layers}
    return found
