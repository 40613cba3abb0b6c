"""What one step is recorded as."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from altup_moe.timeline.overlap import OverlapReport
from altup_moe.train.stragglers import Straggler


@dataclass(frozen=True)
class RoutingLoads:
    """Routes of the last `steps` steps, by layer. A layer without experts has no routes.

    ``routes[layer][expert]``: routes chosen, before dropping; ``dropped[layer]``: those of them that were dropped.
    """

    steps: int
    routes: list[list[float]]
    dropped: list[float]


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl, and now and then one of routing.jsonl.

    Losses in nats per token; rates over all ranks; memory of rank 0. MoE fields are None without experts, `valid_`
    fields None on steps without a validation; None is not written.
    """

    step: int
    """Number of the step, from 1."""
    loss: float
    """What was minimised, nats per token: `lm_loss` plus the routers' weighted losses."""
    lm_loss: float
    """Cross-entropy summed over all labels of the step, divided by their number, nats."""
    aux_loss: float | None
    """Load-balancing loss times its coefficient, summed over the MoE layers."""
    z_loss: float | None
    """Router z-loss times its coefficient, summed over the MoE layers."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping; not a number where a step was skipped for it."""
    learning_rate: float
    """The step's learning rate, of matrices."""
    tokens_per_second: float
    """Tokens of the global batch over `step_seconds`, all ranks together."""
    tflops_per_second: float
    """Operations of the model's forward and backward pass, 10^12 a second, all ranks together; recomputation is not
    counted."""
    step_seconds: float
    """Wall-clock time of the step on rank 0, without validation and checkpoint."""
    memory_gib: float
    """Largest memory of rank 0 so far, GiB: of the process on a CPU, of torch's allocator on a GPU."""
    consumed_samples: int
    """Samples that all steps so far have read."""
    expert_load_imbalance: float | None
    """Largest load of an expert over the mean load, in the layer where that is worst; 1 is balanced."""
    dropped_share: float | None
    """Share of the routes (tokens times top_k) that found their expert full; 0 without a capacity."""
    skipped_steps: int
    """Steps of the run so far that were skipped because loss or gradient was not finite, or was a spike."""
    router_alarms: int | None = None
    """Experts and layers above moe.alarm_expert_share or moe.alarm_dropped_share for moe.alarm_steps steps in a row."""
    valid_loss: float | None = None
    """Mean loss of the validation samples, nats per label."""
    valid_perplexity: float | None = None
    """exp(valid_loss)."""
    valid_bits_per_byte: float | None = None
    """Validation loss in bits per byte of UTF-8 text: comparable between tokenizers."""
    exchange_ms: float | None = None
    """Milliseconds of a recorded step (log.profile_steps; mean of steps and ranks) in which some exchange flew."""
    exposed_ms: float | None = None
    """Milliseconds of a recorded step in which it waited for exchanges."""
    mixing_ms: float | None = None
    """Milliseconds of a recorded step in which the stream was mixed."""
    mixing_hidden_ms: float | None = None
    """The part of mixing_ms in which an exchange was in flight."""
    slowest_score: float | None = None
    """Every `log.straggler_interval` steps of several ranks: own time of a step of the slowest rank over its peers'."""
    slow_rank: int | None = None
    """The rank that is named as slow (`log.straggler_threshold`)."""
    slowest_link_score: float | None = None
    """Of several nodes, from time to time: how many times slower than the others' median their slowest link is."""
    slowest_link_rate: float | None = None
    """10^6 bytes a second of the slowest link between nodes."""
    slow_link_sender: int | None = None
    """Rank whose node is named because what it sends is slow (`log.slow_link_threshold`)."""
    slow_link_receiver: int | None = None
    """Rank whose node is named because what it receives is slow. With a sender too it is the link between both."""
    routing: RoutingLoads | None = None
    """Every `log.routing_interval` steps; not in metrics.jsonl."""

    scores: Mapping[str, float] = field(default_factory=dict)
    """Metrics of train.eval_tasks in percent by ``eval/TASK/METRIC``, each a key of its own in metrics.jsonl."""

    def to_dict(self) -> dict[str, Any]:
        """Numbers that there are, in order; scores at the end."""
        values = {key: value for key, value in vars(self).items() if value is not None}
        return {key: value for key, value in values.items() if key not in ("routing", "scores")} | dict(self.scores)

    def line(self, steps: int) -> str:
        """The console's line, in the field's habit."""
        parts = [f"step {self.step}/{steps}", f"loss {self.loss:.4f}", f"lm {self.lm_loss:.4f}"]
        if self.aux_loss is not None:
            parts += [f"aux {self.aux_loss:.4f}", f"z {self.z_loss:.4f}"]
        parts += [
            f"grad norm {self.grad_norm:.3f}",
            f"lr {self.learning_rate:.2e}",
            f"{self.tokens_per_second:,.0f} tok/s",
            f"{self.tflops_per_second:.3f} TFLOP/s",
            f"mem {self.memory_gib:.2f} GiB",
        ]
        if self.expert_load_imbalance is not None:
            parts += [
                f"expert max/mean {self.expert_load_imbalance:.2f}",
                f"dropped {100 * (self.dropped_share or 0.0):.1f}%",
            ]
        parts.append(f"skipped {self.skipped_steps}")
        if self.valid_loss is not None:
            parts.append(f"valid loss {self.valid_loss:.4f} | bits/byte {self.valid_bits_per_byte:.4f}")
        if self.slow_rank is not None:
            parts.append(f"slow rank {self.slow_rank} ({self.slowest_score:.1f}x)")
        ends = (("from", self.slow_link_sender), ("to", self.slow_link_receiver))
        if named := [f"{word} rank {rank}" for word, rank in ends if rank is not None]:
            parts.append(f"slow link {' '.join(named)} ({self.slowest_link_score:.1f}x)")
        parts += [f"{name} {value:.1f}" for name, value in self.scores.items()]
        return " | ".join(parts)


def overlap_metrics(found: OverlapReport | None) -> dict[str, Any]:
    """The fields of `StepMetrics` that a profile has."""
    names = ("exchange_ms", "exposed_ms", "mixing_ms", "mixing_hidden_ms")
    return {name: getattr(found, name) for name in names} if found else {}


def straggler_metrics(found: Straggler | None) -> dict[str, Any]:
    """The fields of `StepMetrics` that an interval of `train.stragglers` has."""
    if found is None:
        return {}
    values = {"slowest_score": found.score, "slow_rank": found.rank}
    if (link := found.link) is not None:
        values |= {"slowest_link_score": link.score, "slowest_link_rate": link.rate}
        values |= {"slow_link_sender": link.sender, "slow_link_receiver": link.receiver}
    return values


def peak_memory_gib() -> float:
    """Largest memory so far: of this process on a CPU, of torch's allocator on a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
