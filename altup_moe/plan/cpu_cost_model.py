"""A rank whose code runs one operation after another, as torch does on a CPU: what each takes, measured piece by piece.

`Unfused` is what `tools/plan.py measure` finds out; the functions below count how much of each piece a run has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from altup_moe.altup.shape import embedding_width, is_moe_layer, output_width, stream_width
from altup_moe.config import RunConfig
from altup_moe.model.flops import layer_products
from altup_moe.plan.routes import local_tokens

Pair = tuple[float, float]
"""(forward, backward)."""

PIECES = {
    "norm": "an RMSNorm, per number normed",
    "rotary": "rotary embedding, per number of queries and keys",
    "score": "causal attention, per query, key before it, and head",
    "channel": "the same, on top for every channel of a head",
    "gate": "silu(gate) * up, per inner feature",
    "weigh": "times the route's probability, per inner feature of an expert",
    "add": "a residual sum, per number",
    "copy": "a copy into another order, per number",
    "permute": "rows to their experts' order and back, per number",
    "mix": "the stream's pass, per number that it reads: (K + 1) blocks",
    "mix_more": "the same, on top for each of the K blocks",
    "logit": "cross-entropy, per logit",
    "gradient": "a weight's gradient onto its sum (backward only), per parameter",
    "update": "checks, norm, clipping and AdamW (forward only), per parameter",
}
"""Nanoseconds a number that a piece goes through."""

CALLS = {
    "layer": "a dense layer",
    "experts": "what a layer of experts has on top of a dense one",
    "expert": "each expert of a rank",
    "ends": "embedding, output and loss, and the schedule's own, once a micro-batch and chunk of layers",
    "step": "what a step has once (forward only)",
}
"""Microseconds that a piece takes however little it computes: Python, autograd, torch's dispatch of each operation."""

OPERATIONS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
"""Collectives: microseconds of a call that sends each of `MESSAGES`. Where ranks share a machine, all of it is work for
its cores: it hides nothing and is not hidden."""

MESSAGES = (2**8, 2**18, 2**21)
"""Bytes that leave a rank in a measured call. Links take what their buffers hold faster than the rest, so a latency and
a rate are not enough; between two sizes a call's time is on the line through them, beyond the last on the last one."""

SIZES = (64, 256, 1024)
"""Of the products that are measured: rows, inner and outer size are each one of these."""


@dataclass(frozen=True)
class Unfused:
    """Measured with every core busy, as ranks keep them."""

    forward_gflops: Sequence[float]
    """Of x W^T, for rows, inner and outer size in `SIZES`, outer fastest. 10^9 operations a second."""
    backward_gflops: Sequence[float]
    """Of both products that its gradient takes, together."""
    pieces_ns: Mapping[str, Pair]
    calls_us: Mapping[str, Pair]
    operations: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Inside a node; between nodes `network`."""
    network: Mapping[str, Sequence[float]] = field(default_factory=dict)
    lone: float = 1.0
    """Rate of a rank whose neighbours' cores are idle, over that with all of them busy."""

    def product(self, rows: float, inner: float, outer: float) -> Pair:
        """Seconds of one, forward and backward; rates between measured sizes by their logarithms."""
        flops = 2 * rows * inner * outer
        corners = list(_corners((rows, inner, outer)))
        forward, backward = (
            sum(weight * table[index] for index, weight in corners)
            for table in (self.forward_gflops, self.backward_gflops)
        )
        return flops / (1e9 * forward), 2 * flops / (1e9 * backward)

    def pieces(self, numbers: Mapping[str, float]) -> Pair:
        """Seconds of so many numbers through each piece."""
        forward, backward = (1e-9 * sum(n * self.pieces_ns[key][i] for key, n in numbers.items()) for i in (0, 1))
        return forward, backward

    def calls(self, counts: Mapping[str, float]) -> Pair:
        """Seconds of so many calls."""
        forward, backward = (1e-6 * sum(n * self.calls_us[key][i] for key, n in counts.items()) for i in (0, 1))
        return forward, backward

    def update(self, parameters: float) -> float:
        """Seconds of an optimizer's step, and of what else a training step has once."""
        return self.pieces({"update": parameters})[0] + self.calls({"step": 1})[0]

    def alone(self) -> Unfused:
        """Of a rank whose neighbours' cores are idle."""

        def faster(table: Mapping[str, Pair]) -> dict[str, Pair]:
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
        """Seconds of a collective's calls. ``sent``: bytes that leave the rank, ``between`` of them the node."""
        if not calls:
            return 0.0
        return calls * 1e-6 * _on_lines((self.network if between else self.operations)[operation], sent / calls)


def _on_lines(times: Sequence[float], sent: float) -> float:
    """Microseconds of a call, from those of `MESSAGES`."""
    after = 1 if sent < MESSAGES[1] else 2
    low, high = MESSAGES[after - 1 : after + 1]
    return max(0.0, times[after - 1] + (times[after] - times[after - 1]) * (sent - low) / (high - low))


def _corners(sizes: Sequence[float]) -> Iterator[tuple[int, float]]:
    """(index into a table over `SIZES`, weight) of the measured sizes around these; outside, of the nearest."""
    axes = []
    for size in sizes:
        clamped = min(max(size, SIZES[0]), SIZES[-1])
        low = max(i for i, s in enumerate(SIZES[:-1]) if s <= clamped)
        share = math.log(clamped / SIZES[low]) / math.log(SIZES[low + 1] / SIZES[low])
        axes.append(((low, 1 - share), (low + 1, share)))
    for (i, a), (j, b), (k, c) in itertools.product(*axes):
        yield (i * len(SIZES) + j) * len(SIZES) + k, a * b * c


Product = tuple[float, float, float, float]
"""(how many, rows, inner, outer size)."""


def products(config: RunConfig, layer: int, imbalance: float = 1.0) -> Iterator[Product]:
    """A layer's products with weights on one rank and micro-batch."""
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
    """What a layer puts through each piece on one rank and micro-batch, but for the stream's pass."""
    m, moe = config.model, config.moe
    d, t = m.hidden_size, local_tokens(config)
    # A tensor rank has a share of the heads and of inner features, for as many times more tokens.
    q, kv = m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    scores = layer_products(config, layer).scores / 2
    numbers = {
        "norm": t * (2 * d + (q + kv if m.qk_layernorm else 0)),
        "rotary": t * (q + kv),
        "score": t * scores / m.head_dim,
        "channel": t * scores,
        # Cut into queries, keys and values, whose gradients are put together; outputs from heads to tokens.
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
        # What the experts put out becomes one tensor.
        "copy": numbers["copy"] + routes * d,
    }


def layer_calls(config: RunConfig, layer: int) -> dict[str, float]:
    """A layer's calls."""
    moe = config.moe
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return {"layer": 1}
    return {"layer": 1, "experts": 1, "expert": moe.num_experts / config.parallel.expert}


def mixing_numbers(config: RunConfig) -> dict[str, float]:
    """The stream's pass over one layer: K blocks and an output."""
    width = stream_width(config.altup.width, config.altup.variant)
    if width == 1:
        return {}
    read = (width + 1) * local_tokens(config) * config.model.hidden_size
    return {"mix": read, "mix_more": read * width}


def first_numbers(config: RunConfig) -> dict[str, float]:
    """Embedding and widening, where a chunk has them."""
    m, a = config.model, config.altup
    width = embedding_width(m.hidden_size, a.width, a.recycled)
    widened = stream_width(a.width, a.variant) * m.hidden_size if a.recycled and a.width > 1 else 0
    return {"copy": local_tokens(config) * (width + widened)}


def last_numbers(config: RunConfig) -> dict[str, float]:
    """Final norm and loss, where a chunk has them. A tensor rank has a share of the vocabulary for all tokens."""
    m, a = config.model, config.altup
    width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
    return {"norm": local_tokens(config) * width, "logit": local_tokens(config) * m.vocab_size}


def output_product(config: RunConfig) -> Product:
    """The output layer's."""
    m, a, p = config.model, config.altup, config.parallel
    width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
    return 1, local_tokens(config) * p.tensor, width, m.vocab_size / p.tensor
