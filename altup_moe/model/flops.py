"""Multiply-adds of one token, by part of the model. The one count: training logs it, planning divides time by it."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal, Self

from altup_moe.altup.shape import (
    branches,
    context_width,
    has_head,
    has_projections,
    is_moe_layer,
    output_width,
    stream_width,
)
from altup_moe.altup.variants import find_variant
from altup_moe.config import RunConfig
from altup_moe.config.sequence import strided_decoder_layers, strided_layers

StackKind = Literal["decoder", "encoder", "cross_decoder"]
"""Layers of a decoder-only model, and of an encoder-decoder's two stacks."""


@dataclass(frozen=True)
class Parts:
    """Base of a record whose fields are all amounts of one unit."""

    # `vars` holds the fields in their order; `dataclasses.astuple` would copy each value, which takes far longer.
    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, vars(self).values(), vars(other).values()))

    def __mul__(self, factor: float) -> Self:
        return type(self)(*(factor * part for part in vars(self).values()))

    @property
    def total(self) -> float:
        """All parts."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Products(Parts):
    """Multiply-adds of one token's forward pass. Experts: those it is routed to. Scores: in decoders the causal half.

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
    """The stream's mix and write, K (K + 1) a feature; what computes a token's coefficients; the stream's ends."""
    output: float = 0
    """The output layer."""


def layer_products(config: RunConfig, layer: int, kind: StackKind = "decoder") -> Products:
    """One layer's. ``layer``: its index in its stack, from 0.

    A layer of stride s has S / s tokens, each with S / s to attend to (and all of an encoder's output); what it adds to
    the others is not counted.
    """
    m = config.model
    q, kv = m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    own = {"decoder": m.seq_length * q, "encoder": 2 * m.seq_length * q, "cross_decoder": m.decoder_length * q}[kind]
    if kind == "cross_decoder":
        strided = strided_decoder_layers(config.sequence, m.decoder_layers)
        across = Products(attention=m.hidden_size * 2 * q, scores=2 * m.seq_length * q)
    else:
        strided, across = strided_layers(config.sequence, m.num_layers), Products()
    inside = Products(attention=m.hidden_size * (2 * q + 2 * kv)) + across + _mlp(config, layer)
    stride = config.sequence.stride if layer in strided else 1
    return inside * (1 / stride) + Products(scores=own / stride**2, mixing=_mixing(config))


def _mlp(config: RunConfig, layer: int) -> Products:
    m, moe, d = config.model, config.moe, config.model.hidden_size
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return Products(dense=3 * d * m.ffn_hidden_size)
    return Products(
        experts=3 * d * moe.top_k * moe.ffn_hidden_size,
        shared=3 * d * config.shared_expert_size,
        router=d * moe.num_experts,
    )


def _mixing(config: RunConfig) -> float:
    a, d = config.altup, config.model.hidden_size
    width = stream_width(a.width, a.variant)
    made = find_variant(a.variant).coefficient_products(width, d)
    steps = len(branches(a.level))
    return steps * (width * (width + 1) * d + made) if width > 1 else 0


def output_products(config: RunConfig) -> Products:
    """The output layer's, and those of learned matrices at the stream's ends."""
    m, a = config.model, config.altup
    ends: float = 2 * (a.width - 1) * m.hidden_size**2 if has_projections(a.width, a.variant) else 0
    if has_head(a.width, a.variant, a.recycled):
        # A matrix of the head is one product a token, a vector none.
        shapes = (row.sizes(a.width, m.hidden_size) for row in find_variant(a.variant).head.values())
        ends += sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    return Products(output=output_width(m.hidden_size, a.width, a.variant, a.recycled) * m.vocab_size, mixing=ends)


def model_products(config: RunConfig) -> Products:
    """The whole model's. An encoder-decoder's are the mean over the tokens of both stacks."""
    m = config.model
    if not m.encoder_decoder:
        return sum((layer_products(config, n) for n in range(m.num_layers)), output_products(config))
    # Keys and values of the encoder's output are computed on the encoder's tokens, in every layer of the decoder.
    read = context_width(m.hidden_size, config.altup.width, config.altup.variant, config.altup.cross_attention)
    context = Products(attention=m.decoder_layers * read * 2 * m.num_query_groups * m.head_dim)
    encoder = sum((layer_products(config, n, "encoder") for n in range(m.num_layers)), context)
    layers = (layer_products(config, n, "cross_decoder") for n in range(m.decoder_layers))
    decoder = sum(layers, output_products(config))
    share = m.seq_length / m.tokens_per_sample
    return encoder * share + decoder * (1 - share)


def flops_per_token(config: RunConfig) -> float:
    """Floating-point operations of forward and backward for one token, active experts only."""
    return 6.0 * model_products(config).total


def attention_flops(config: RunConfig) -> float:
    """Operations of a forward pass of one sample in attention scores and the values weighed by them."""
    return 2.0 * model_products(config).scores * config.model.tokens_per_sample
