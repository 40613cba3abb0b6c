"""Names and shapes of a model's parameters and buffers: the local names of Megatron's modules, and the global ones."""

from __future__ import annotations

from collections.abc import Iterator

from altup_moe.altup.shape import SEQUENCE_COEFFICIENTS, branches, has_head, has_projections, has_steps, is_moe_layer
from altup_moe.altup.variants import find_variant, stream_row
from altup_moe.config import RunConfig
from altup_moe.config.sequence import strided_decoder_layers, strided_layers
from altup_moe.moe.backends import find_backend
from altup_moe.parallel.parameter_mapping import Shard, pieces

ROUTER_BUFFERS = (".expert_bias", ".expert_load")
"""Ends of the names of a router's state that no optimizer updates."""


def local_names(config: RunConfig, layers: range, first: bool, last: bool, experts: int) -> Iterator[str]:
    """Names of the parameters and persistent buffers of one model chunk, as Megatron's modules have them.

    Grouped experts (`train.transformer_engine`) have other names but contain the same pieces.

    Args:
        layers: global indices of the chunk's layers. An encoder-decoder is one chunk; these are its encoder layers.
        first: whether the chunk has the embedding. last: whether it has the output layer.
        experts: experts of an MoE layer on one rank.
    """
    tied = config.model.share_embeddings_and_output_weights
    if first:
        yield "embedding.word_embeddings.weight"
    others = config.altup.width - 1 if has_projections(config.altup.width, config.altup.variant) else 0
    if first:
        yield from (f"expand.{index}.weight" for index in range(others))
    if config.model.encoder_decoder:
        yield from _stack_names(config, "encoder", layers, experts)
        yield from ("encoder.final_layernorm.weight", "encoder_bias.weight", "decoder_bias.weight")
        layers = range(config.model.decoder_layers)
    yield from _stack_names(config, "decoder", layers, experts)
    if last:
        yield from (f"decoder.contract.{index}.weight" for index in range(others))
        if has_head(config.altup.width, config.altup.variant, config.altup.recycled):
            yield from (f"decoder.collapse.coefficients.{c}" for c in find_variant(config.altup.variant).head)
        yield "decoder.final_layernorm.weight"
    if last and not (first and tied):
        yield "output_layer.weight"


def _stack_names(config: RunConfig, stack: str, layers: range, experts: int) -> Iterator[str]:
    a = config.altup
    stepped = has_steps(a.width, a.variant, a.correct)
    crossed = config.model.encoder_decoder and stack == "decoder"
    if crossed:
        strided = strided_decoder_layers(config.sequence, config.model.decoder_layers)
    else:
        strided = strided_layers(config.sequence, config.model.num_layers)
    for index, layer in enumerate(layers):
        inner = f"{stack}.layers.{index}.layer" if stepped else f"{stack}.layers.{index}"
        for branch in branches(a.level) if stepped else ():
            step = f"branches.{branch}." if branch else ""
            for coefficient in stream_row(a.variant, a.width).coefficients:
                yield f"{stack}.layers.{index}.{step}coefficients.{coefficient}"
        if layer in strided:
            yield from (f"{inner}.sequence.{c}" for c in SEQUENCE_COEFFICIENTS[config.sequence.method])
            inner += ".layer"
        if crossed:
            yield f"{inner}.pre_cross_attn_layernorm.weight"
            yield from (f"{inner}.cross_attention.linear_{which}.weight" for which in ("proj", "q", "kv"))
        for name in _layer_names(config, layer, experts):
            yield f"{inner}.{name}"


def _layer_names(config: RunConfig, layer: int, experts: int) -> Iterator[str]:
    moe = config.moe
    yield "input_layernorm.weight"
    yield "self_attention.linear_proj.weight"
    yield "self_attention.linear_qkv.weight"
    if config.model.qk_layernorm:
        yield from ("self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight")
    yield "pre_mlp_layernorm.weight"
    if not is_moe_layer(layer, moe.num_experts, moe.layer_freq):
        yield from ("mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
        return
    yield "mlp.router.weight"
    if moe.expert_bias_update_rate > 0:
        yield "mlp.router.expert_bias"
    if moe.balances_steps:
        yield "mlp.router.expert_load"
    if find_backend(moe.backend).stacked:
        yield from ("mlp.experts.fc1", "mlp.experts.fc2")
        experts = 0
    for expert in range(experts):
        yield from (f"mlp.experts.local_experts.{expert}.linear_fc{n}.weight" for n in (1, 2))
    if config.shared_expert_size:
        yield from (f"mlp.shared_experts.linear_fc{n}.weight" for n in (1, 2))


def global_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Global name -> shape, of every parameter and buffer of a run's model."""
    names = local_names(config, range(config.model.num_layers), True, True, config.moe.num_experts)
    return {piece.name: piece.shape for name in names for piece in pieces(name, 0, Shard(), config)}


def is_buffer(name: str) -> bool:
    """Whether a global name is that of a buffer, which no optimizer updates."""
    return name.endswith(ROUTER_BUFFERS)
