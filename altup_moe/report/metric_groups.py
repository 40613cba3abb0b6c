"""The numbers of a step's record in groups, with names and labels: pages and trackers show them in this order."""

from __future__ import annotations

import re
from dataclasses import dataclass

GROUPS = {
    "loss": "Training loss",
    "validation": "Validation",
    "eval": "Tasks",
    "optimizer": "Optimizer",
    "throughput": "Speed and memory",
    "routing": "Routing",
    "overlap": "Overlap (of recorded steps)",
}
"""Group -> heading."""


@dataclass(frozen=True)
class Metric:
    """A key of metrics.jsonl.

    ``name``: in its group. ``factor``: from the key's unit to the label's. ``roof``: share of a curve's values that its
    figure must show. ``zeros``: whether a curve of zeros says something.
    """

    key: str
    group: str
    name: str
    label: str
    factor: float = 1.0
    roof: float = 1.0
    zeros: bool = True

    @property
    def path(self) -> str:
        """Name in a tracker, as in loss/lm."""
        return f"{self.group}/{self.name}"


METRICS = (
    Metric("lm_loss", "loss", "lm", "loss (nats a token)", roof=0.93),
    Metric("loss", "loss", "total", "loss with the routers' (nats a token)", roof=0.93),
    Metric("aux_loss", "loss", "balance", "balance loss, weighted", roof=0.98, zeros=False),
    Metric("z_loss", "loss", "router_z", "router z-loss, weighted", roof=0.98, zeros=False),
    Metric("valid_loss", "validation", "loss", "validation loss (nats a token)", roof=0.93),
    Metric("valid_bits_per_byte", "validation", "bits_per_byte", "validation, bits per byte", roof=0.93),
    Metric("valid_perplexity", "validation", "perplexity", "validation perplexity", roof=0.93),
    Metric("grad_norm", "optimizer", "grad_norm", "gradient norm", roof=0.98),
    Metric("learning_rate", "optimizer", "learning_rate", "learning rate"),
    Metric("skipped_steps", "optimizer", "skipped_steps", "skipped steps", zeros=False),
    Metric("consumed_samples", "optimizer", "consumed_samples", "samples seen"),
    Metric("tokens_per_second", "throughput", "tokens_per_second", "tokens a second"),
    Metric("step_seconds", "throughput", "step_seconds", "time of a step (ms)", factor=1e3, roof=0.98),
    Metric("tflops_per_second", "throughput", "tflops_per_second", "TFLOP/s"),
    Metric("memory_gib", "throughput", "memory_gib", "peak memory (GiB)"),
    Metric("slowest_score", "throughput", "slowest_score", "slowest rank's own time over its peers'"),
    Metric("slow_rank", "throughput", "slow_rank", "rank named as slow"),
    Metric("slowest_link_score", "throughput", "slowest_link_score", "median rate of links over the slowest's"),
    Metric("slowest_link_rate", "throughput", "slowest_link_rate", "slowest link between nodes (MB/s)"),
    Metric("slow_link_sender", "throughput", "slow_link_sender", "rank whose node sends slowly"),
    Metric("slow_link_receiver", "throughput", "slow_link_receiver", "rank whose node receives slowly"),
    Metric("expert_load_imbalance", "routing", "load_imbalance", "fullest expert over the mean, worst layer"),
    Metric("dropped_share", "routing", "dropped_share", "dropped routes (%)", factor=100.0, zeros=False),
    Metric("router_alarms", "routing", "alarms", "router alarms", zeros=False),
    Metric("exchange_ms", "overlap", "exchange_ms", "exchange in flight (ms a step)"),
    Metric("exposed_ms", "overlap", "exposed_ms", "waited for exchange (ms a step)"),
    Metric("mixing_ms", "overlap", "mixing_ms", "mixing (ms a step)"),
    Metric("mixing_hidden_ms", "overlap", "mixing_hidden_ms", "mixing while an exchange flies (ms a step)"),
)


def task_metric(key: str) -> Metric | None:
    """The metric of a task's score, eval/TASK/METRIC in percent; None if the key is not one."""
    if not re.fullmatch(r"eval/[\w.-]+/[\w.-]+", key):
        return None
    task, name = key.split("/")[1:]
    return Metric(key, "eval", f"{task}/{name}", f"{task}: {name} (%)")
