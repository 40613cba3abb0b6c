"""Cost model of a rank that runs one operation after another, as torch does on a CPU.

`CpuCostModel` holds the measured cost of each piece (`altup-moe plan measure`). The functions below count how often a
run needs each piece.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from altup_moe.altup.shape import (
    branches,
    embedding_width,
    has_head,
    has_projections,
    has_steps,
    is_moe_layer,
    output_width,
    stream_width,
)
from altup_moe.altup.step_costs import Work
from altup_moe.altup.variants import find_variant
from altup_moe.config import ConfigError, RunConfig
from altup_moe.model.flops import layer_products
from altup_moe.moe.backends import joins_steps
from altup_moe.plan.routes import local_tokens

ForwardBackward = tuple[float, float]
"""(forward, backward), seconds unless stated otherwise."""

PIECES = {
    "norm": "an RMSNorm, per number of its input",
    "rotary": "the rotary embedding, per number of queries and keys",
    "score": "causal attention, per query, visible key and head",
    "channel": "causal attention, added to that for each channel of a head",
    "gate": "silu(gate) * up, per inner feature",
    "weigh": "the product with the route's probability, per inner feature of an expert",
    "add": "a residual sum, per number",
    "copy": "a copy that changes the order of dimensions, per number",
    "permute": "sorting rows by expert and restoring their order, per number",
    "mix": "the mixing pass over the stream, per number that it reads: (K + 1) blocks",
    "mix_more": "the mixing pass, added to that for each of the K blocks",
    "token_mix": "a pass with weights of every token, per product of a weight and a number",
    "token_write": "writing an output to the blocks with weights of every token, per number of the blocks",
    "logit": "cross-entropy, per logit",
    "gradient": "adding a weight's gradient to its sum (backward only), per parameter",
    "update": "gradient checks, norm, clipping and AdamW (forward only), per parameter",
}
"""Pieces of a layer. Their costs are in nanoseconds for each number."""

CALLS = {
    "layer": "a dense layer",
    "experts": "what a layer of experts has in addition to a dense layer",
    "expert": "each expert of a rank",
    "ends": "embedding, output, loss and the pipeline schedule, for each micro-batch and chunk of layers",
    "step": "what a training step does once (forward only)",
    "iteration": "one pass of Sinkhorn's iterations over the small matrices of all tokens",
}
"""Fixed costs in microseconds, independent of tensor sizes: Python, autograd, torch's dispatch of each operation."""

TOKEN_COSTS = ("token_mix", "token_write", "iteration")
"""Costs that only streams with weights of every token have. Files measured by earlier versions lack them."""

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
"""Collectives. Their costs are in microseconds of a call, for each size of `MESSAGES`.

Between ranks of one machine the cores do all of this work, so it cannot overlap with computation.
"""

MESSAGES = (2**8, 2**18, 2**21)
"""Bytes that leave a rank in a measured call.

A link takes the bytes that fit its buffers faster than the rest, so one latency and one rate do not describe it. The
time of other sizes is interpolated linearly between two of these; beyond the largest, the last line is continued.
"""

SIZES = (64, 256, 1024)
"""Rows, inner size and outer size of the measured products: all combinations of these."""


@dataclass(frozen=True)
class CpuCostModel:
    """Measured costs of one core while all cores are busy, as they are when every core has a rank."""

    forward_gflops: Sequence[float]
    """10^9 operations a second of x W^T, for rows, inner and outer size in `SIZES`; the outer size varies fastest."""
    backward_gflops: Sequence[float]
    """The same for the two products of its gradient together."""
    pieces_ns: Mapping[str, ForwardBackward]
    """Nanoseconds a number, for each of `PIECES`."""
    calls_us: Mapping[str, ForwardBackward]
    """Microseconds, for each of `CALLS`."""
    operations: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Microseconds of `OPERATIONS` inside a node, for each of `MESSAGES`."""
    network: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The same between nodes."""
    lone: float = 1.0
    """Speed of a rank while all other cores are idle, over its speed while they are busy."""

    def product(self, rows: float, inner: float, outer: float) -> ForwardBackward:
        """Seconds of one product. Rates are interpolated in the logarithms of the sizes."""
        flops = 2 * rows * inner * outer
        corners = list(_corners((rows, inner, outer)))
        forward, backward = (
            sum(weight * table[index] for index, weight in corners)
            for table in (self.forward_gflops, self.backward_gflops)
        )
        return flops / (1e9 * forward), 2 * flops / (1e9 * backward)

    def pieces(self, numbers: Mapping[str, float]) -> ForwardBackward:
        """Seconds of pieces. ``numbers``: piece -> numbers that it processes."""
        forward, backward = (1e-9 * sum(n * self.pieces_ns[key][i] for key, n in numbers.items()) for i in (0, 1))
        return forward, backward

    def calls(self, counts: Mapping[str, float]) -> ForwardBackward:
        """Seconds of calls. ``counts``: call -> how often."""
        forward, backward = (1e-6 * sum(n * self.calls_us[key][i] for key, n in counts.items()) for i in (0, 1))
        return forward, backward

    def update(self, parameters: float) -> float:
        """Seconds of the optimizer's step and of the other fixed costs of a training step."""
        return self.pieces({"update": parameters})[0] + self.calls({"step": 1})[0]

    def alone(self) -> CpuCostModel:
        """The costs of a rank while all other cores are idle."""

        def faster(table: Mapping[str, ForwardBackward]) -> dict[str, ForwardBackward]:
            return {key: (forward / self.lone, backward / self.lone) for key, (forward, backward) in table.items()}

        forward, backward = ([self.lone * r for r in rates] for rates in (self.forward_gflops, self.backward_gflops))
        return replace(
            self,
            forward_gflops=forward,
            backward_gflops=backward,
            pieces_ns=faster(self.pieces_ns),
            calls_us=faster(self.calls_us),
        )

    def transfer(self, operation: str, calls: float, sent: float, between: float) -> float:
        """Seconds of all calls of a collective. ``sent``: bytes that leave the rank, ``between`` the node."""
        if not calls:
            return 0.0
        return calls * 1e-6 * _on_lines((self.network if between else self.operations)[operation], sent / calls)


def _on_lines(times: Sequence[float], sent: float) -> float:
    """Microseconds of a call that sends `sent` bytes, interpolated between `MESSAGES`."""
    after = 1 if sent < MESSAGES[1] else 2
    low, high = MESSAGES[after - 1 : after + 1]
    return max(0.0, times[after - 1] + (times[after] - times[after - 1]) * (sent - low) / (high - low))


def _corners(sizes: Sequence[float]) -> Iterator[tuple[int, float]]:
    """(table index, weight) of the measured sizes around `sizes`; outside the table, of the nearest ones."""
    axes = []
    for size in sizes:
        clamped = min(max(size, SIZES[0]), SIZES[-1])
        low = max(i for i, s in enumerate(SIZES[:-1]) if s <= clamped)
        share = math.log(clamped / SIZES[low]) / math.log(SIZES[low + 1] / SIZES[low])
        axes.append(((low, 1 - share), (low + 1, share)))
    for (i, a), (j, b), (k, c) in itertools.product(*axes):
        yield (i * len(SIZES) + j) * len(SIZES) + k, a * b * c


Product = tuple[float, float, float, float]
"""(number of products, rows, inner size, outer size)."""


def products(config: RunConfig, layer: int, imbalance: float = 1.0) -> Iterator[Product]:
    """Products with weights of one layer, on one rank and for one micro-batch."""
    m, moe, p = config.model, config.moe, config.parallel
    d, tokens = m.hidden_size, local_tokens(config)
    rows, q, kv = tokens * p.tensor, m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    yield 1, rows, d, (q + 2 * kv) / p.tensor
    yield 1, rows, q / p.tensor, d
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        yield from _mlp(1, rows, d, m.ffn_hidden_size / p.tensor)
        return
    yield 1, tokens, d, moe.num_experts
    local = moe.num_experts / p.expert
    each = tokens * moe.top_k * p.expert_tensor * imbalance / local
    yield from _mlp(local, each, d, moe.ffn_hidden_size / p.expert_tensor)
    if config.shared_expert_size:
        yield from _mlp(1, rows, d, config.shared_expert_size / p.tensor)


def _mlp(count: float, rows: float, d: int, inner: float) -> Iterator[Product]:
    yield count, rows, d, 2 * inner
    yield count, rows, inner, d


def layer_numbers(config: RunConfig, layer: int, imbalance: float = 1.0) -> dict[str, float]:
    """Numbers that each piece of a layer processes, on one rank and for one micro-batch; mixing excepted."""
    m, moe = config.model, config.moe
    d, t = m.hidden_size, local_tokens(config)
    # A tensor rank has 1 / tensor of the heads and inner features, and all tokens of the tensor group.
    q, kv = m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    scores = layer_products(config, layer).scores / 2
    numbers = {
        "norm": t * (2 * d + (q + kv if m.qk_layernorm else 0)),
        "rotary": t * (q + kv),
        "score": t * scores / m.head_dim,
        "channel": t * scores,
        # The split into queries, keys and values, and the outputs from head order to token order.
        "copy": t * (q + kv + q),
        "add": 2 * t * d,
    }
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return {**numbers, "gate": t * m.ffn_hidden_size}
    routes = t * moe.top_k * imbalance
    inner = routes * moe.ffn_hidden_size
    return {
        **numbers,
        "gate": inner + t * config.shared_expert_size,
        "weigh": inner,
        "permute": routes * d,
        # The outputs of the experts are concatenated.
        "copy": numbers["copy"] + routes * d,
    }


def layer_calls(config: RunConfig, layer: int) -> dict[str, float]:
    """Calls of a layer, by name in `CALLS`."""
    moe = config.moe
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return {"layer": 1}
    return {"layer": 1, "experts": 1, "expert": moe.num_experts / config.parallel.expert}


def mixing_numbers(config: RunConfig) -> dict[str, float]:
    """Numbers of the mixing of one layer with static weights: a pass of each step reads K blocks and an output.

    Where a layer's two steps join, one pass reads K blocks and two outputs and writes two rows more, and a second axpy
    reads a row and two outputs.
    """
    a = config.altup
    if not has_steps(a.width, a.variant, a.correct):
        return {}
    width = stream_width(a.width, a.variant)
    block = local_tokens(config) * config.model.hidden_size
    if joins_steps(config):
        return {"mix": (width + 5) * block, "mix_more": ((width + 2) ** 2 + 3) * block}
    read = len(branches(a.level)) * (width + 1) * block
    return {"mix": read, "mix_more": read * width}


NARROWEST = 16
"""Outer size of a product below which it takes no less time: then it is its input that counts."""


def work_seconds(config: RunConfig, model: CpuCostModel, work: Work) -> ForwardBackward:
    """Seconds of mixing with weights of every token, for one micro-batch.

    Raises:
        ConfigError: the cost model was measured before these streams could be planned.
    """
    missing = [name for name in TOKEN_COSTS if name not in {**model.pieces_ns, **model.calls_us}]
    if missing:
        fits = f"has no {', '.join(missing)}, which altup.variant={config.altup.variant} needs"
        raise ConfigError("cluster.cpu_cost_model", "measured before", f"{fits}; altup-moe plan measure writes them")
    tokens, width = local_tokens(config), config.altup.width
    block = tokens * config.model.hidden_size
    numbers = {
        "token_mix": block * sum(rows * columns for rows, columns, _ in work.passes),
        "token_write": block * (work.writes * width + sum(rows * outputs for rows, _, outputs in work.passes)),
        "norm": tokens * work.normed,
        "gate": tokens * work.gated,
        "copy": tokens * work.copied,
        # A sum reads two numbers and writes one.
        "add": tokens * work.moved / 3,
    }
    parts = [model.pieces(numbers), model.calls({"iteration": work.iterations})]
    parts += [model.product(tokens, inner, max(NARROWEST, outer)) for inner, outer in work.products]
    forward, backward = (sum(part[i] for part in parts) for i in (0, 1))
    return forward, backward


def first_numbers(config: RunConfig) -> dict[str, float]:
    """Numbers of the embedding and the widening, for the first chunk."""
    m, a = config.model, config.altup
    width = embedding_width(m.hidden_size, a.width, a.recycled)
    widened = stream_width(a.width, a.variant) * m.hidden_size if a.recycled and a.width > 1 else 0
    return {"copy": local_tokens(config) * (width + widened)}


def last_numbers(config: RunConfig) -> dict[str, float]:
    """Numbers of the final norm and the loss, for the last chunk."""
    m, a = config.model, config.altup
    width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
    return {"norm": local_tokens(config) * width, "logit": local_tokens(config) * m.vocab_size}


def output_product(config: RunConfig) -> Product:
    """The product of the output layer."""
    m, a, p = config.model, config.altup, config.parallel
    width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
    return 1, local_tokens(config) * p.tensor, width, m.vocab_size / p.tensor


def end_products(config: RunConfig) -> Iterator[Product]:
    """Products of the learned ends of the stream."""
    a, d, tokens = config.altup, config.model.hidden_size, local_tokens(config)
    if has_projections(a.width, a.variant):
        yield 2 * (a.width - 1), tokens, d, d
    if has_head(a.width, a.variant, a.recycled):
        for shape in (row.sizes(a.width, d) for row in find_variant(a.variant).head.values()):
            if len(shape) == 2:
                yield 1, tokens, shape[1], max(NARROWEST, shape[0])
