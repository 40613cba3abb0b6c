"""Which module stands in which slot of a pipeline stage, built on Megatron's local spec."""

from __future__ import annotations

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import CrossAttention, CrossAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from altup_moe.altup.shape import has_steps, is_moe_layer
from altup_moe.model.altup_layer import AltUpBranches, AltUpLayer
from altup_moe.model.attention import CoreAttention
from altup_moe.model.flops import StackKind
from altup_moe.model.norm import FinalNorm, norm_class
from altup_moe.model.overlapped_reduce_scatter import OverlappedRowParallelLinear
from altup_moe.model.sequence_layer import SequenceLayer
from altup_moe.model.transformer_config import AltUpTransformerConfig
from altup_moe.moe.backends import find_backend
from altup_moe.moe.router import CapacityRouter
from altup_moe.parallel.compat import mlp_submodules, with_moe_layer
from altup_moe.parallel.topology import Topology


class ContextKeyValue(ColumnParallelLinear):
    """Cross-attention's keys and values, of an encoder's output that may be wider than the layer."""

    def __init__(self, input_size: int, *args: Any, config: AltUpTransformerConfig, **kwargs: Any) -> None:
        super().__init__(config.altup_context_width, *args, config=config, **kwargs)


def cross_attention() -> ModuleSpec:
    """Spec of a decoder's attention to an encoder's output."""
    slots = CrossAttentionSubmodules(
        linear_q=ColumnParallelLinear,
        linear_kv=ContextKeyValue,
        core_attention=CoreAttention,
        linear_proj=RowParallelLinear,
    )
    return ModuleSpec(module=CrossAttention, params={"attn_mask_type": AttnMaskType.padding}, submodules=slots)


def layer_spec(config: AltUpTransformerConfig, layer: int, groups: Any, kind: StackKind = "decoder") -> ModuleSpec:
    """Spec of the layer with index `layer` in its stack (from 0). ``groups``: Megatron's process groups."""
    experts = config.num_moe_experts or 0
    moe = is_moe_layer(layer, experts, config.moe_layer_freq)
    spec = get_gpt_layer_local_spec(num_experts=experts if moe else None, normalization="RMSNorm")
    slots = spec.submodules
    slots.input_layernorm = slots.pre_mlp_layernorm = norm_class(config)
    slots.self_attention.submodules.core_attention = CoreAttention
    if config.qk_layernorm:
        attention = slots.self_attention.submodules
        attention.q_layernorm = attention.k_layernorm = norm_class(config)
    # Megatron's map renames fused norms in its own checkpoints; ours are separate modules.
    slots.sharded_state_dict_keys_map = {}
    if kind == "encoder":
        slots.self_attention.params = {**slots.self_attention.params, "attn_mask_type": AttnMaskType.padding}
    if kind == "cross_decoder":
        slots.pre_cross_attn_layernorm, slots.cross_attention = norm_class(config), cross_attention()
        slots.cross_attn_bda = get_bias_dropout_add
    if moe:
        mlp_submodules(slots.mlp).router = CapacityRouter
        if config.moe_grouped_gemm:
            # Of Transformer Engine's spec the experts alone: one launch for all of a rank's.
            grouped = get_moe_module_spec(use_te=True, num_experts=experts, moe_grouped_gemm=True)
            mlp_submodules(slots.mlp).experts = mlp_submodules(grouped).experts
        slots.mlp = with_moe_layer(slots.mlp, find_backend(config.moe_backend).load(), groups)
    else:
        mlp_submodules(slots.mlp).linear_fc2 = OverlappedRowParallelLinear
    if layer in (config.sequence_decoder_layers if kind == "cross_decoder" else config.sequence_layers):
        spec.module, spec.params = SequenceLayer, {"causal": kind != "encoder"}
    if has_steps(config.altup_width, config.altup_variant, config.altup_correct):
        if config.altup_level == "branch":
            # Attention is a step of its own, whose mixing has no other window.
            slots.self_attention.submodules.linear_proj = OverlappedRowParallelLinear
            return ModuleSpec(module=AltUpBranches, submodules=slots)
        return ModuleSpec(module=AltUpLayer, params={"layer": spec.module, **spec.params}, submodules=slots)
    return spec


def first_layer(config: AltUpTransformerConfig, pipeline_rank: int, vp_stage: int | None) -> int:
    """Global index of the first layer of a model chunk."""
    return get_transformer_layer_offset(config, vp_stage, pipeline_rank)


def stage_spec(config: AltUpTransformerConfig, topology: Topology, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Specs of the layers of one model chunk, and the final norm that the last one builds."""
    pipeline_rank, groups = topology.pipeline_rank, topology.groups
    first = first_layer(config, pipeline_rank, vp_stage)
    count = get_num_layers_to_build(config, vp_stage, pipeline_rank)
    return TransformerBlockSubmodules(
        layer_specs=[layer_spec(config, first + i, groups) for i in range(count)], layer_norm=FinalNorm
    )


def stack_spec(config: AltUpTransformerConfig, topology: Topology, layers: int, kind: StackKind) -> Any:
    """Specs of a whole stack's layers and its final norm."""
    specs = [layer_spec(config, n, topology.groups, kind) for n in range(layers)]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=FinalNorm)
