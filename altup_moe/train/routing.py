"""What the routers did in a step, summed over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from altup_moe.config import RunConfig
from altup_moe.device.on_device import on_device
from altup_moe.moe.records import RecordsRouting
from altup_moe.parallel.topology import Topology
from altup_moe.train.batches import Batch
from altup_moe.train.metrics import RoutingLoads


@dataclass(frozen=True)
class RoutingSummary:
    """One step's routing. ``counts[layer][expert]``: routes chosen, before dropping; dense layers have zeros.

    ``aux_loss``, ``z_loss``: weighted, summed over layers, of the whole step (docs/concepts/loss_of_a_step.md).
    ``dropped_share``: of all routes; ``dropped[layer]``: routes.
    ``load_imbalance``: the largest expert's load over the mean, of the worst layer.
    """

    counts: list[list[float]]
    aux_loss: float
    z_loss: float
    dropped_share: float
    load_imbalance: float
    dropped: list[float]


class RoutingSums:
    """Routes of the steps since the last that were due (`log.routing_interval`). Mutable."""

    def __init__(self, config: RunConfig) -> None:
        t, asked = config.train, config.log.routing_interval
        self._interval = -(-t.steps // 100) if asked is None else asked
        self._last = min(t.steps, t.stop_after or t.steps)
        self._begin()

    def _begin(self) -> None:
        self._steps = 0
        self._routes: NDArray[np.float64] | float = 0.0
        self._dropped: NDArray[np.float64] | float = 0.0

    def step(self, summary: RoutingSummary | None, step: int) -> RoutingLoads | None:
        """Count a step. Returns the sums, which begin anew, where they are due: every some steps, and at the last."""
        if summary is None or not self._interval:
            return None
        self._steps += 1
        self._routes = routes = self._routes + np.asarray(summary.counts)
        self._dropped = dropped = self._dropped + np.asarray(summary.dropped)
        if step % self._interval and step != self._last:
            return None
        loads = RoutingLoads(self._steps, [row.tolist() if row.any() else [] for row in routes], dropped.tolist())
        self._begin()
        return loads


def _routers(chunks: list[nn.Module]) -> list[RecordsRouting]:
    return [m for chunk in chunks for m in chunk.modules() if isinstance(m, RecordsRouting)]


def begin_step(chunks: list[nn.Module], batches: list[Batch], config: RunConfig, topology: Topology) -> None:
    """Forget the last step's records, and tell routers how many tokens this one has.

    Args:
        batches: this data rank's micro-batches, whole.
    """
    routers = _routers(chunks)
    for router in routers:
        router.clear_record()
    if not routers or not (config.moe.z_loss_coeff or config.moe.balances_steps):
        return
    kinds = sorted({(router.in_encoder, router.stride) for router in routers})
    tokens = on_device([sum(batch.tokens_routed(*kind) for batch in batches) for kind in kinds], topology.device)
    dist.all_reduce(tokens, group=topology.groups.dp)
    means = dict(zip(kinds, (tokens / (len(batches) * topology.data_size)).float().unbind(), strict=True))
    for router in routers:
        router.tokens_of_micro_batch = means[router.in_encoder, router.stride]


def step_taken(chunks: list[nn.Module], summary: RoutingSummary | None, config: RunConfig) -> None:
    """Expert biases and loads follow the routes of a step that has updated the weights."""
    if summary is None:
        return
    for router in _routers(chunks):
        router.step_taken(summary.counts[router.layer_number - 1], config.moe.expert_bias_update_rate)


def summarise_routing(chunks: list[nn.Module], config: RunConfig, topology: Topology) -> RoutingSummary | None:
    """Reduce the records of all ranks; every rank gets the same. None without experts. One all-reduce."""
    table = routing_sums(chunks, config, topology)
    return None if table is None else summary_of(table.cpu(), config)


def routing_sums(chunks: list[nn.Module], config: RunConfig, topology: Topology) -> Tensor | None:
    """The records of all ranks, fp64 [layers, E + 3] on the device: routes of each expert, dropped ones, aux loss, z
    loss. None without experts. One all-reduce; nothing is read back."""
    experts, layers = config.moe.num_experts, config.model.total_layers
    if experts == 0:
        return None
    table = torch.zeros(layers, experts + 3, dtype=torch.float64, device=topology.device)
    for router in _routers(chunks):
        record = router.record
        row = torch.cat([record.counts, torch.stack([record.dropped, record.aux, record.z])])
        table[router.layer_number - 1] += row.double()
    # Tensor and context ranks hold different tokens of a micro-batch, and shares of its losses: a sum is the whole.
    dist.all_reduce(table)
    return table


def summary_of(table: Tensor, config: RunConfig) -> RoutingSummary:
    """What `routing_sums` has found, once it is on the host."""
    experts = config.moe.num_experts
    counts, dropped, aux, z = table.split([experts, 1, 1, 1], dim=1)
    micro_batches = config.train.global_batch_size / config.train.micro_batch_size
    used = counts.sum(1) > 0
    imbalance = (counts[used].amax(1) / counts[used].mean(1)).max() if bool(used.any()) else torch.ones(())
    return RoutingSummary(
        counts=counts.tolist(),
        aux_loss=float(aux.sum()) / micro_batches,
        z_loss=float(z.sum()) / micro_batches,
        dropped_share=float(dropped.sum() / counts.sum().clamp(min=1.0)),
        load_imbalance=float(imbalance),
        dropped=dropped[:, 0].tolist(),
    )
