"""Seconds of one layer on one rank: products, passes over memory, and exposed communication."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from altup_moe.altup.shape import branches, has_steps, is_moe_layer, stream_width
from altup_moe.altup.step_costs import Work
from altup_moe.config import RunConfig
from altup_moe.config.ranges import Range
from altup_moe.model.flops import Parts, layer_products, output_products
from altup_moe.moe.backends import defers_mixing, joins_steps, walks_two_steps
from altup_moe.parallel.rank_coordinates import ChunkLayers, RankCoordinates
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.cpu_cost_model import (
    CpuCostModel,
    ForwardBackward,
    Product,
    end_products,
    first_numbers,
    last_numbers,
    layer_calls,
    layer_numbers,
    mixing_numbers,
    output_product,
    products,
    work_seconds,
)
from altup_moe.plan.groups import World
from altup_moe.plan.routes import local_tokens
from altup_moe.plan.streams import block_bytes, layer_work, token_step
from altup_moe.plan.transfer_time import busy_seconds, exchange_seconds, kind_seconds, transfer_seconds
from altup_moe.plan.transfers import Transfer


@dataclass(frozen=True)
class Factors:
    """What makes a step slower than the arithmetic of an even run."""

    imbalance: float = 1.0
    """Rows of the fullest expert rank over the mean."""
    straggler: float = 1.0
    """Compute time of the slowest GPU over the mean. All GPUs wait for the slowest."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a number that cannot be: the greatest is not below the mean."""
        for key, value in vars(self).items():
            Range(1).check(key, value)


@dataclass(frozen=True)
class Times(Parts):
    """Seconds of one forward or backward pass. `tensor`, `context` and `expert` are exposed communication."""

    products: float = 0.0
    passes: float = 0.0
    """Norms, activations and permutations, which the memory bandwidth limits."""
    calls: float = 0.0
    """Fixed costs of calls; only with a `CpuCostModel`."""
    mixing: float = 0.0
    """The exposed part of the mixing pass over the stream."""
    tensor: float = 0.0
    context: float = 0.0
    expert: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where a layer is in its chunk."""

    first: bool = False
    last: bool = False


@dataclass(frozen=True)
class Window:
    """Seconds of a layer's forward pass: what mixing can do in the window, and how long communication leaves the rank
    idle; ``waits``: mixing that waits for outputs, whatever the window."""

    needs: float
    idle: float
    waits: float = 0.0


def compute_times(config: RunConfig, cluster: Cluster, layer: int, factors: Factors) -> tuple[Times, Times]:
    """(forward, backward) of a layer and one micro-batch, without communication and mixing."""
    if cluster.cpu_cost_model is not None:
        numbers = layer_numbers(config, layer, factors.imbalance)
        matrix_products = products(config, layer, factors.imbalance)
        return _sequential_times(config, cluster, matrix_products, numbers, layer_calls(config, layer), factors)
    moe, m = config.moe, config.model
    per_layer = layer_products(config, layer)
    tokens, e = local_tokens(config), PARAMETER_BYTES[config.train.precision]
    # A tensor rank computes 1 / tensor of what the tokens of all tensor ranks cost: the whole cost of its own tokens.
    experts = per_layer.experts * factors.imbalance
    per_token = per_layer.attention + per_layer.scores + per_layer.dense + per_layer.shared + per_layer.router + experts
    seconds = 2 * tokens * per_token / cluster.flops(config.train.precision)
    rows = tokens * moe.top_k * factors.imbalance if is_moe_layer(layer, moe.num_experts, moe.layer_freq) else 0
    # Reads and writes: two norms and two residual sums (3 blocks each); rotary embedding, activation, permutations.
    blocks = 12 * m.hidden_size + 4 * (m.num_attention_heads + m.num_query_groups) * m.head_dim
    ffn = m.ffn_hidden_size * tokens if not rows else config.shared_expert_size * tokens + moe.ffn_hidden_size * rows
    moved = e * (tokens * blocks + 5 * ffn + 8 * rows * m.hidden_size)
    forward = Times(products=seconds, passes=moved / cluster.memory_rate) * factors.straggler
    return forward, forward * 2


def _sequential_times(
    config: RunConfig,
    cluster: Cluster,
    matrix_products: Iterable[Product],
    numbers: dict[str, float],
    calls: dict[str, float],
    factors: Factors,
) -> tuple[Times, Times]:
    """(forward, backward) by the cluster's `CpuCostModel`: one operation runs after another."""
    model = cluster.cpu_cost_model
    assert model is not None
    # The tables were measured in fp32. For bf16 they are scaled by the ratio of the peaks.
    slower = cluster.peak("fp32") / cluster.peak(config.train.precision)
    each = [(count * slower, model.product(*sizes)) for count, *sizes in matrix_products]
    attention = {key: n for key, n in numbers.items() if key in ("score", "channel")}
    passes = {key: n for key, n in numbers.items() if key not in attention}
    forward, backward = (
        Times(products=sum(count * pair[i] for count, pair in each) + scores, passes=moved, calls=called)
        * factors.straggler
        for i, scores, moved, called in zip(
            (0, 1), model.pieces(attention), model.pieces(passes), model.calls(calls), strict=True
        )
    )
    return forward, backward


@dataclass(frozen=True)
class MixingSeconds:
    """Seconds of one layer's mixing, (forward, backward): ``waits`` for outputs, ``posted`` can run in the window."""

    waits: ForwardBackward
    posted: ForwardBackward


def mixing_seconds(config: RunConfig, cluster: Cluster) -> MixingSeconds:
    """Seconds of the mixing of one layer, whether or not what is posted is deferred.

    Static weights, of which all is posted: a pass over (2 K + 2) blocks a step forward, or one over (2 K + 4) for two
    steps that join; twice as many backward. Weights of every token: what `altup.step_costs` counts.
    """
    step, model = token_step(config), cluster.cpu_cost_model
    if step is not None:
        waits, posted = layer_work(config, step)
        if model is not None:
            return MixingSeconds(work_seconds(config, model, waits), work_seconds(config, model, posted))
        return MixingSeconds(_work_seconds(config, cluster, waits), _work_seconds(config, cluster, posted))
    if model is not None:
        return MixingSeconds((0.0, 0.0), model.pieces(mixing_numbers(config)))
    a = config.altup
    if not has_steps(a.width, a.variant, a.correct):
        return MixingSeconds((0.0, 0.0), (0.0, 0.0))
    width = stream_width(a.width, a.variant)
    moved = 2 * width + 4 if joins_steps(config) else len(branches(a.level)) * (2 * width + 2)
    forward = moved * block_bytes(config) / cluster.memory_rate
    # The backward moves about twice as many bytes: the blocks and their gradients.
    return MixingSeconds((0.0, 0.0), (forward, 2 * forward))


def _work_seconds(config: RunConfig, cluster: Cluster, work: Work) -> ForwardBackward:
    """Bytes over the memory's bandwidth, and products in fp32 over the chip's rate; backward twice as long."""
    tokens, width = local_tokens(config), config.altup.width
    blocks = sum(rows + columns + outputs for rows, columns, outputs in work.passes) + work.writes * (2 * width + 1)
    # Norms and copies read and write; so does a sigmoid, and a product reads two numbers and writes one.
    numbers = 2 * (work.normed + work.copied) + 5 * work.gated + work.moved
    numbers += sum(inner + outer for inner, outer in work.products)
    moved = blocks * block_bytes(config) + 4 * tokens * numbers
    products = 2 * tokens * sum(inner * outer for inner, outer in work.products)
    forward = moved / cluster.memory_rate + products / cluster.flops("fp32")
    return forward, 2 * forward


def window(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    layer: int,
    transfers: list[Transfer],
) -> Window:
    """A layer's window in one forward pass. ``transfers``: those of one micro-batch.

    In a layer with experts mixing runs during the dispatch, in a dense layer during the reduce-scatter at its end.
    """
    forward = [t for t in transfers if t.phase == "forward" and t.layer == layer]
    pairs = [t for t in forward if t.operation == "all_to_all"]
    if is_moe_layer(layer, config.moe.num_experts, config.moe.layer_freq):
        # The dispatch sends two messages to each rank (rows, probabilities), the combine sends one.
        most = max((t.calls for t in pairs), default=0)
        waits = [t for t in pairs if t.calls == most]
        idle = exchange_seconds(waits, cluster) - busy_seconds(waits, cluster)
    else:
        scatters = [t for t in forward if t.operation == "reduce_scatter" and t.kind == "tensor"]
        idle = sum((transfer_seconds(t, cluster) - busy_seconds([t], cluster)) / t.calls for t in scatters[-1:])
    mixing = mixing_seconds(config, cluster)
    return Window(mixing.posted[0], idle, mixing.waits[0])


def layer_times(
    config: RunConfig,
    world: World,
    cluster: Cluster,
    coordinates: RankCoordinates,
    layer: int,
    transfers: list[Transfer],
    factors: Factors,
    at: Place,
) -> tuple[Times, Times]:
    """(forward, backward) of a layer and one micro-batch. ``transfers``: those of one micro-batch."""
    bases = compute_times(config, cluster, layer, factors)
    opening = window(config, world, cluster, coordinates, layer, transfers)
    forward = _with_communication(config, bases[0], opening, transfers, "forward", layer, cluster, factors, at)
    backward = _with_communication(config, bases[1], opening, transfers, "backward", layer, cluster, factors, at)
    if config.train.recompute == "full":
        return forward, backward + forward + _rebuilding(config, cluster)
    if config.train.recompute == "selective":
        scores = 2 * local_tokens(config) * layer_products(config, layer).scores / cluster.flops(config.train.precision)
        again = kind_seconds([t for t in transfers if t.phase == "recompute"], "context", cluster)
        return forward, backward + Times(products=scores, context=again)
    return forward, backward


def _rebuilding(config: RunConfig, cluster: Cluster) -> Times:
    """The states before recomputed steps, by mixing once more (`model.recompute`). Static weights' is not counted."""
    if token_step(config) is None or not defers_mixing(config):
        return Times()
    mixing = mixing_seconds(config, cluster)
    return Times(mixing=mixing.waits[0] + mixing.posted[0])


def _with_communication(
    config: RunConfig,
    base: Times,
    opening: Window,
    transfers: list[Transfer],
    phase: str,
    layer: int,
    cluster: Cluster,
    factors: Factors,
    at: Place,
) -> Times:
    found = [t for t in transfers if t.phase == phase and t.layer == layer]
    tensor, context = (kind_seconds(found, kind, cluster) for kind in ("tensor", "context"))
    expert = kind_seconds(found, "expert", cluster) * factors.imbalance
    mixing, hidden = mixing_seconds(config, cluster), 0.0
    posted = mixing.posted[phase == "backward"]
    waits = mixing.waits[phase == "backward"]
    asynchronous = config.overlap.exchange == "async"
    if walks_two_steps(config):
        # While the rows of one layer travel, the one after it computes: but for the last one's, which come back alone.
        expert = max(expert - _beside(config, base, layer, at), expert / 2 if at.last else 0.0)
        hidden = min(posted, expert)
    elif asynchronous and defers_mixing(config):
        hidden = min(posted, opening.idle)
    if asynchronous and config.overlap.microbatch_halves:
        # While the rows of one half travel, the other half computes.
        expert = max(0.0, expert - base.total / 2)
    return base + Times(mixing=waits + posted - hidden, tensor=tensor, context=context, expert=expert)


def _beside(config: RunConfig, base: Times, layer: int, at: Place) -> float:
    """Seconds of a layer that run while another's rows travel, where outputs are delayed (`model.two_step_walk`).

    Around layers all of it, but for the first one's attention: nothing travels yet (backward: any more). A layer alone
    has no other. Around branches attention. That is taken for its share of the operations.
    """
    parts = layer_products(config, layer)
    attention = parts.attention + parts.scores
    attention *= base.total / (attention + parts.dense + parts.shared + parts.router + parts.experts)
    if config.altup.level == "branch":
        return attention
    if at.first and at.last:
        return 0.0
    return base.total - attention if at.first else base.total


def output_times(
    config: RunConfig, cluster: Cluster, transfers: list[Transfer], factors: Factors
) -> tuple[Times, Times]:
    """(forward, backward) of the output layer and the loss, one micro-batch. Uses the transfers that have no layer."""
    if cluster.cpu_cost_model is not None:
        numbers = last_numbers(config)
        matrix_products = [output_product(config), *end_products(config)]
        bases = _sequential_times(config, cluster, matrix_products, numbers, {"ends": 0.5}, factors)
    else:
        tokens = local_tokens(config)
        products = output_products(config)
        # Learned ends of the stream are fp32, or of the parameters' dtype: a small part, taken at the latter's rate.
        seconds = 2 * tokens * (products.output + products.mixing) / cluster.flops(config.train.precision)
        moved = 4 * 4 * tokens * config.model.vocab_size
        base = Times(products=seconds, passes=moved / cluster.memory_rate) * factors.straggler
        bases = base, base * 2
    pairs = []
    for phase, cost in zip(("forward", "backward"), bases, strict=True):
        found = [t for t in transfers if t.phase == phase and t.layer is None]
        pairs.append(cost + Times(tensor=kind_seconds(found, "tensor", cluster)))
    return pairs[0], pairs[1]


def chunk_times(config: RunConfig, model: CpuCostModel, chunk: ChunkLayers, held: float) -> tuple[Times, Times]:
    """(forward, backward) of the rest of a chunk of layers for one micro-batch.

    The rest is the embedding and the accumulation of the gradients of `held` parameters. A plan with fused kernels
    counts neither.
    """
    numbers = {"gradient": held, **(first_numbers(config) if chunk.first else {})}
    passes, calls = model.pieces(numbers), model.calls({"ends": 0.5 * chunk.first})
    return Times(passes=passes[0], calls=calls[0]), Times(passes=passes[1], calls=calls[1])
