"""Multiply-adds of one token, by part of the model. The one count: training logs it, planning divides time by it."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from altup_moe.altup.shape import is_moe_layer, output_width, stream_width
from altup_moe.config import RunConfig


@dataclass(frozen=True)
class Products:
    """Multiply-adds of one token's forward pass. Experts: those it is routed to. Scores: their causal half.

    Looking up an embedding multiplies nothing. A floating-point count is twice these (forward), or six times with the
    backward, which costs two forwards (Kaplan et al., arXiv 2001.08361, section 2.1).
    """

    attention: float = 0
    """Projections of queries, keys, values and outputs."""
    scores: float = 0
    """Queries times keys, weights times values."""
    dense: float = 0
    """Gated MLPs of dense layers."""
    experts: float = 0
    shared: float = 0
    """The shared expert."""
    router: float = 0
    mixing: float = 0
    """The stream's mix and write: K (K + 1) a feature."""
    output: float = 0
    """The output layer."""

    def __add__(self, other: Products) -> Products:
        return Products(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        """All parts."""
        return sum(astuple(self))


def layer_products(config: RunConfig, layer: int) -> Products:
    """One layer's. ``layer``: its global index, from 0."""
    m, moe = config.model, config.moe
    d, q, kv = m.hidden_size, m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    width = stream_width(config.altup.width, config.altup.variant)
    around = Products(
        attention=d * (2 * q + 2 * kv),
        scores=m.seq_length * q,
        mixing=width * (width + 1) * d if width > 1 else 0,
    )
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return around + Products(dense=3 * d * m.ffn_hidden_size)
    return around + Products(
        experts=3 * d * moe.top_k * moe.ffn_hidden_size,
        shared=3 * d * moe.shared_expert_size,
        router=d * moe.num_experts,
    )


def output_products(config: RunConfig) -> Products:
    """The output layer's."""
    m, a = config.model, config.altup
    return Products(output=output_width(m.hidden_size, a.width, a.variant, a.recycled) * m.vocab_size)


def model_products(config: RunConfig) -> Products:
    """The whole model's."""
    layers = (layer_products(config, layer) for layer in range(config.model.num_layers))
    return sum(layers, output_products(config))


def flops_per_token(config: RunConfig) -> float:
    """Floating-point operations of forward and backward for one token, active experts only."""
    return 6.0 * model_products(config).total
