"""Seconds of one layer on one rank: products, passes over memory, and communication that nothing hides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from altup_moe.altup.shape import is_moe_layer, stream_width
from altup_moe.config import RunConfig
from altup_moe.model.flops import Parts, layer_products, output_products
from altup_moe.moe.backends import mixes_in_windows
from altup_moe.parallel.rank_coordinates import Chunk, Place
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.cpu_cost_model import (
    Pair,
    Product,
    Unfused,
    first_numbers,
    last_numbers,
    layer_calls,
    layer_numbers,
    mixing_numbers,
    output_product,
    products,
)
from altup_moe.plan.groups import World
from altup_moe.plan.routes import local_tokens
from altup_moe.plan.transfers import Transfer


@dataclass(frozen=True)
class Factors:
    """What makes a step slower than its arithmetic."""

    imbalance: float = 1.0
    """Rows of the fullest expert rank over the mean."""
    straggler: float = 1.0
    """Compute time of the slowest GPU over the mean: all wait for it."""


@dataclass(frozen=True)
class Times(Parts):
    """Seconds of one pass; communication is what stays exposed."""

    products: float = 0.0
    passes: float = 0.0
    """Norms, activations, permutations: bound by memory."""
    calls: float = 0.0
    """What operations take however little they compute, where they are not fused."""
    mixing: float = 0.0
    """The stream's pass, where it is not hidden."""
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0


@dataclass(frozen=True)
class Window:
    """What mixing needs of a layer and what its communication leaves idle, seconds, in the forward pass."""

    needs: float
    idle: float


def transfer_seconds(transfer: Transfer, cluster: Cluster) -> float:
    """Of a transfer's calls: bytes over the slower of the links, both in use at once, and a latency a call."""
    out = transfer.between_nodes(cluster.gpus_per_node)
    if cluster.unfused is not None:
        return cluster.unfused.transfer(transfer.operation, transfer.calls, transfer.sent, out)
    latency = cluster.network_latency_us if out else cluster.node_latency_us
    rates = (transfer.sent - out) / (1e9 * cluster.node_gb_per_s), out / (1e9 * cluster.network_gb_per_s)
    return max(rates) + transfer.calls * 1e-6 * latency


def exchange_seconds(transfers: Iterable[Transfer], cluster: Cluster) -> float:
    """Of an all-to-all's pairs: they share the rank's links, and one latency a call, not a pair."""
    found = list(transfers)
    if not found:
        return 0.0
    out = sum(t.between_nodes(cluster.gpus_per_node) for t in found)
    inside = sum(t.sent for t in found) - out
    latency = cluster.network_latency_us if out else cluster.node_latency_us
    calls = max(sum(t.calls for t in found if t.ranks == ranks) for ranks in {t.ranks for t in found})
    if cluster.unfused is not None:
        return cluster.unfused.transfer("all_to_all", calls, inside + out, out)
    return max(inside / (1e9 * cluster.node_gb_per_s), out / (1e9 * cluster.network_gb_per_s)) + calls * 1e-6 * latency


def _worked(transfers: Sequence[Transfer], cluster: Cluster) -> float:
    """Seconds of such transfers that the rank's own core is busy with: where nothing is fused, gloo's inside a node."""
    if cluster.unfused is None or not transfers:
        return 0.0
    inside = replace(cluster, unfused=replace(cluster.unfused, network=cluster.unfused.operations))
    if transfers[0].operation == "all_to_all":
        return min(exchange_seconds(transfers, cluster), exchange_seconds(transfers, inside))
    return sum(min(transfer_seconds(t, cluster), transfer_seconds(t, inside)) for t in transfers)


def _kind_seconds(transfers: list[Transfer], kind: str, cluster: Cluster) -> float:
    mine = [t for t in transfers if t.kind == kind]
    pairs = [t for t in mine if t.operation == "all_to_all"]
    return exchange_seconds(pairs, cluster) + sum(transfer_seconds(t, cluster) for t in mine if t not in pairs)


def compute(config: RunConfig, cluster: Cluster, layer: int, factors: Factors) -> tuple[Times, Times]:
    """A layer's (forward, backward) without communication and mixing."""
    if cluster.unfused is not None:
        numbers = layer_numbers(config, layer, factors.imbalance)
        found = products(config, layer, factors.imbalance)
        return _unfused(config, cluster, found, numbers, layer_calls(config, layer), factors)
    moe, m = config.moe, config.model
    per_layer = layer_products(config, layer)
    tokens, e = local_tokens(config), PARAMETER_BYTES[config.train.precision]
    # A tensor rank computes its share of what T tokens cost, t = T / tensor of them the whole cost: the same number.
    experts = per_layer.experts * factors.imbalance
    per_token = per_layer.attention + per_layer.scores + per_layer.dense + per_layer.shared + per_layer.router + experts
    seconds = 2 * tokens * per_token / cluster.flops(config.train.precision)
    rows = tokens * moe.top_k * factors.imbalance if is_moe_layer(layer, moe.num_experts, moe.layer_freq) else 0
    # Reads and writes: two norms (3 blocks each) and two residual sums (3 each); rotation, activation; permutations.
    blocks = 12 * m.hidden_size + 4 * (m.num_attention_heads + m.num_query_groups) * m.head_dim
    ffn = m.ffn_hidden_size * tokens if not rows else config.shared_expert_size * tokens + moe.ffn_hidden_size * rows
    moved = e * (tokens * blocks + 5 * ffn + 8 * rows * m.hidden_size)
    forward = Times(products=seconds, passes=moved / cluster.memory_rate) * factors.straggler
    return forward, forward * 2


def _unfused(
    config: RunConfig,
    cluster: Cluster,
    found: Iterable[Product],
    numbers: dict[str, float],
    calls: dict[str, float],
    factors: Factors,
) -> tuple[Times, Times]:
    """(forward, backward) of what runs one operation after another."""
    unfused = cluster.unfused
    assert unfused is not None
    # Products were measured in fp32; in another type they are as much slower as a large one is.
    slower = cluster.peak("fp32") / cluster.peak(config.train.precision)
    each = [(count * slower, unfused.product(*sizes)) for count, *sizes in found]
    attention = {key: n for key, n in numbers.items() if key in ("score", "channel")}
    passes = {key: n for key, n in numbers.items() if key not in attention}
    forward, backward = (
        Times(products=sum(count * pair[i] for count, pair in each) + scores, passes=moved, calls=called)
        * factors.straggler
        for i, scores, moved, called in zip(
            (0, 1), unfused.pieces(attention), unfused.pieces(passes), unfused.calls(calls), strict=True
        )
    )
    return forward, backward


def mixing_seconds(config: RunConfig, cluster: Cluster) -> Pair:
    """The stream's pass over a layer, forward and backward: (2 K + 2) blocks read or written once, or twice."""
    if cluster.unfused is not None:
        return cluster.unfused.pieces(mixing_numbers(config))
    width = stream_width(config.altup.width, config.altup.variant)
    if width == 1:
        return 0.0, 0.0
    block = local_tokens(config) * config.model.hidden_size * PARAMETER_BYTES[config.train.precision]
    forward = (2 * width + 2) * block / cluster.memory_rate
    # The backward's pass moves about twice the forward's bytes: the blocks and their gradients.
    return forward, 2 * forward


def window(
    config: RunConfig, world: World, cluster: Cluster, place: Place, layer: int, transfers: list[Transfer]
) -> Window:
    """A layer's window in one forward pass. ``transfers``: the layer's, of one micro-batch.

    A layer with experts has its dispatch (posted work is done there), a dense one the reduce-scatter that ends it.
    """
    forward = [t for t in transfers if t.phase == "forward" and t.layer == layer]
    pairs = [t for t in forward if t.operation == "all_to_all"]
    if is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq):
        # Of the forward's messages to a rank two of three are the dispatch (rows, probabilities), one the combine.
        most = max((t.calls for t in pairs), default=0)
        waits = [t for t in pairs if t.calls == most]
        idle = exchange_seconds(waits, cluster) - _worked(waits, cluster)
    else:
        scatters = [t for t in forward if t.operation == "reduce_scatter" and t.kind == "tensor"]
        idle = sum((transfer_seconds(t, cluster) - _worked([t], cluster)) / t.calls for t in scatters[-1:])
    return Window(mixing_seconds(config, cluster)[0], idle)


def layer_times(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    place: Place,
    layer: int,
    transfers: list[Transfer],
    factors: Factors,
) -> tuple[Times, Times]:
    """(forward, backward) of a layer and one micro-batch. ``transfers``: the layer's, of one micro-batch."""
    bases, opening = compute(config, cluster, layer, factors), window(config, world, cluster, place, layer, transfers)
    forward = _with_communication(config, bases[0], opening, transfers, "forward", layer, cluster, factors)
    backward = _with_communication(config, bases[1], opening, transfers, "backward", layer, cluster, factors)
    if config.train.recompute == "full":
        return forward, backward + forward
    if config.train.recompute == "selective":
        scores = 2 * local_tokens(config) * layer_products(config, layer).scores / cluster.flops(config.train.precision)
        again = _kind_seconds([t for t in transfers if t.phase == "recompute"], "context", cluster)
        return forward, backward + Times(products=scores, context=again)
    return forward, backward


def _with_communication(
    config: RunConfig,
    base: Times,
    opening: Window,
    transfers: list[Transfer],
    phase: str,
    layer: int,
    cluster: Cluster,
    factors: Factors,
) -> Times:
    found = [t for t in transfers if t.phase == phase and t.layer == layer]
    tensor, context = (_kind_seconds(found, kind, cluster) for kind in ("tensor", "context"))
    expert = _kind_seconds(found, "expert", cluster) * factors.imbalance
    mixing = mixing_seconds(config, cluster)[phase == "backward"]
    hidden = 0.0
    asynchronous = config.overlap.exchange == "async"
    if asynchronous and mixes_in_windows(config):
        hidden = min(mixing, opening.idle)
    if asynchronous and config.overlap.microbatch_halves:
        # While one half's rows travel the other computes.
        expert = max(0.0, expert - base.total / 2)
    return base + Times(mixing=mixing - hidden, tensor=tensor, context=context, expert=expert)


def output_times(
    config: RunConfig, cluster: Cluster, transfers: list[Transfer], factors: Factors
) -> tuple[Times, Times]:
    """(forward, backward) of the output layer and the loss, one micro-batch. ``transfers``: those of no layer."""
    if cluster.unfused is not None:
        bases = _unfused(config, cluster, [output_product(config)], last_numbers(config), {"ends": 0.5}, factors)
    else:
        tokens = local_tokens(config)
        seconds = 2 * tokens * output_products(config).output / cluster.flops(config.train.precision)
        moved = 4 * 4 * tokens * config.model.vocab_size
        base = Times(products=seconds, passes=moved / cluster.memory_rate) * factors.straggler
        bases = base, base * 2
    pairs = []
    for phase, cost in zip(("forward", "backward"), bases, strict=True):
        found = [t for t in transfers if t.phase == phase and t.layer is None]
        pairs.append(cost + Times(tensor=_kind_seconds(found, "tensor", cluster)))
    return pairs[0], pairs[1]


def chunk_times(config: RunConfig, unfused: Unfused, chunk: Chunk, held: float) -> tuple[Times, Times]:
    """(forward, backward) of what a chunk of layers has beside them and the output, one micro-batch.

    Embedding, and `held` gradients that are added up. Fused, neither is counted.
    """
    numbers = {"gradient": held, **(first_numbers(config) if chunk.first else {})}
    passes, calls = unfused.pieces(numbers), unfused.calls({"ends": 0.5 * chunk.first})
    return Times(passes=passes[0], calls=calls[0]), Times(passes=passes[1], calls=calls[1])
