"""What autograd keeps of one layer and micro-batch, and what the layer's backward pass holds besides.

Legend: t tokens of a tensor rank's part of the sequence, d width, e bytes of a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from altup_moe.altup.shape import branches, has_steps, is_moe_layer
from altup_moe.config import RunConfig
from altup_moe.plan.buffers import PARAMETER_BYTES
from altup_moe.plan.routes import local_tokens


@dataclass(frozen=True)
class StepActivations:
    """Bytes of one step of a layer: of its attention, its feed-forward, or both.

    ``kept``: what autograd keeps of it, without recomputation. ``gradients``: those that are there at once in its
    backward pass, beyond what that has freed.
    """

    kept: float
    gradients: float


def step_activations(config: RunConfig, layer: int) -> list[StepActivations]:
    """The steps of a layer, which are one where it is plain."""
    a = config.altup
    attention = StepActivations(sum(_attention(config)), _attention_gradients(config))
    feed_forward = StepActivations(sum(_feed_forward(config, layer)), _feed_forward_gradients(config, layer))
    if has_steps(a.width, a.variant, a.correct) and len(branches(a.level)) > 1:
        return [attention, feed_forward]
    # The backward pass of attention begins when what the feed-forward kept is free.
    return [StepActivations(attention.kept + feed_forward.kept, feed_forward.gradients)]


def _attention_gradients(config: RunConfig) -> float:
    """Gradients of rotated queries and keys and of values, and of the fused projection."""
    m, e, t = config.model, PARAMETER_BYTES[config.train.precision], local_tokens(config)
    features = (m.num_attention_heads + 2 * m.num_query_groups) * m.head_dim
    return 2 * e * t * features + _gathered(config)


def _gathered(config: RunConfig) -> float:
    """A linear layer's input, of all tensor ranks: it is gathered once more for the gradient of its weight."""
    whole = local_tokens(config) * config.parallel.tensor * config.model.hidden_size
    return whole * PARAMETER_BYTES[config.train.precision] if config.parallel.tensor > 1 else 0.0


def _feed_forward_gradients(config: RunConfig, layer: int) -> float:
    """Gradients of SwiGLU's product and of both its factors, where the product itself is freed; of an MoE layer's also
    the rows on their way from the experts' outputs and to their inputs."""
    m, p, moe = config.model, config.parallel, config.moe
    e, t = PARAMETER_BYTES[config.train.precision], local_tokens(config)
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        return 2 * e * t * m.ffn_hidden_size + _gathered(config)
    # Where they travel there are those to send and those that came.
    travelling = 2 if p.expert * p.expert_tensor > 1 else 1
    return e * _rows(config) * (2 * moe.ffn_hidden_size / p.expert_tensor + travelling * m.hidden_size)


def _rows(config: RunConfig) -> float:
    """Rows that experts of a rank compute for one micro-batch, balanced: of all expert tensor ranks."""
    moe, p = config.moe, config.parallel
    return local_tokens(config) * moe.top_k * min(1.0, moe.capacity_factor or 1.0) * p.expert_tensor


def _attention(config: RunConfig) -> Iterator[float]:
    m, p = config.model, config.parallel
    e, t = PARAMETER_BYTES[config.train.precision], local_tokens(config)
    matrices = t * p.tensor
    heads = m.num_attention_heads / p.tensor
    q, kv = heads * m.head_dim, m.num_query_groups * m.head_dim / p.tensor
    yield norm_bytes(t, m.hidden_size, e)
    if m.qk_layernorm:
        yield norm_bytes(matrices, q + kv, e)
    # The fused projection, rotated queries and keys, the attention output, and a scale for each query and head.
    yield matrices * (e * (3 * q + 3 * kv) + 4 * heads)
    if p.context > 1:
        # Keys and values of all context ranks instead of this rank's, and the mask.
        everywhere = m.seq_length
        yield matrices * e * kv * (2 * p.context - 1) + everywhere * everywhere / p.context


def _feed_forward(config: RunConfig, layer: int) -> Iterator[float]:
    m, p, moe = config.model, config.parallel, config.moe
    e, t, d = PARAMETER_BYTES[config.train.precision], local_tokens(config), m.hidden_size
    yield norm_bytes(t, d, e)
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        yield _mlp(t * p.tensor, e, m.ffn_hidden_size / p.tensor, 5)
        return
    rows = _rows(config)
    # Scores before and after the softmax, chosen experts, positions of routes (int64) and their probabilities.
    yield t * (2 * 4 * moe.num_experts + 3 * 8 * moe.top_k) + rows * (2 * 8 + 2 * 4)
    yield rows * e * d + _mlp(rows, e, moe.ffn_hidden_size / p.expert_tensor, 6)
    if config.shared_expert_size:
        yield _mlp(t * p.tensor, e, config.shared_expert_size / p.tensor, 5)


def norm_bytes(rows: float, width: float, e: int) -> float:
    """Bytes that an RMSNorm keeps: input and normalised input in fp32, output for the next linear, scales."""
    return rows * (width * (8 + e) + 4)


def _mlp(rows: float, e: int, ffn: float, parts: int) -> float:
    """Bytes that an MLP keeps in `parts` tensors: gate, up, silu(gate) and twice their product.

    An expert also keeps the product with the route's probability.
    """
    return rows * e * parts * ffn
