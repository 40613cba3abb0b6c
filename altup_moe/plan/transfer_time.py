"""Seconds of collectives and sends on a cluster's links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from altup_moe.plan.cluster import Cluster
from altup_moe.plan.transfers import Transfer


def transfer_seconds(transfer: Transfer, cluster: Cluster) -> float:
    """Seconds of a transfer's calls.

    Fused: its bytes over the slower of the two links, which work at the same time, and one latency for each call.
    With a `CpuCostModel`: the measured time of its calls.
    """
    out = transfer.between_nodes(cluster.gpus_per_node)
    if cluster.cpu_cost_model is not None:
        return cluster.cpu_cost_model.transfer(transfer.operation, transfer.calls, transfer.sent, out)
    latency = cluster.network_latency_us if out else cluster.node_latency_us
    rates = (transfer.sent - out) / (1e9 * cluster.node_gb_per_s), out / (1e9 * cluster.network_gb_per_s)
    return max(rates) + transfer.calls * 1e-6 * latency


def exchange_seconds(transfers: Iterable[Transfer], cluster: Cluster) -> float:
    """Seconds of an all-to-all, given as one transfer for each pair of ranks.

    The pairs share the rank's links, and a call costs one latency, however many pairs it has.
    """
    pairs = list(transfers)
    if not pairs:
        return 0.0
    out = sum(t.between_nodes(cluster.gpus_per_node) for t in pairs)
    inside = sum(t.sent for t in pairs) - out
    latency = cluster.network_latency_us if out else cluster.node_latency_us
    by_pair: Counter[tuple[int, ...]] = Counter()
    for t in pairs:
        by_pair[t.ranks] += t.calls
    calls = max(by_pair.values())
    if cluster.cpu_cost_model is not None:
        return cluster.cpu_cost_model.transfer("all_to_all", calls, inside + out, out)
    return max(inside / (1e9 * cluster.node_gb_per_s), out / (1e9 * cluster.network_gb_per_s)) + calls * 1e-6 * latency


def kind_seconds(transfers: Sequence[Transfer], kind: str, cluster: Cluster) -> float:
    """Seconds of all transfers of one `TransferKind`."""
    mine = [t for t in transfers if t.kind == kind]
    pairs = [t for t in mine if t.operation == "all_to_all"]
    others = [t for t in mine if t.operation != "all_to_all"]
    return exchange_seconds(pairs, cluster) + sum(transfer_seconds(t, cluster) for t in others)


def busy_seconds(transfers: Sequence[Transfer], cluster: Cluster) -> float:
    """Seconds of these transfers in which the rank's own core works for them, so that it cannot compute.

    0 on a GPU, whose links work by themselves. With a `CpuCostModel`: what the calls would take inside a node, where
    gloo does all the work on the cores.
    """
    if cluster.cpu_cost_model is None or not transfers:
        return 0.0
    model = cluster.cpu_cost_model
    inside = replace(cluster, cpu_cost_model=replace(model, network=model.operations))
    if transfers[0].operation == "all_to_all":
        return min(exchange_seconds(transfers, cluster), exchange_seconds(transfers, inside))
    return sum(min(transfer_seconds(t, cluster), transfer_seconds(t, inside)) for t in transfers)
