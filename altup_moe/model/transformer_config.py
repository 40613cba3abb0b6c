"""A run's configuration in Megatron's terms, with our own fields beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from altup_moe.altup.shape import context_width
from altup_moe.altup.variants import Correct, Level
from altup_moe.config import RunConfig
from altup_moe.config.packages import PACKAGES
from altup_moe.config.sequence import strided_decoder_layers, strided_layers
from altup_moe.moe.activations import ACTIVATIONS
from altup_moe.moe.backends import defers_mixing, walks_two_steps

PRECISION_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""`train.precision` as a torch dtype."""


@dataclass
class AltUpTransformerConfig(TransformerConfig):
    """Megatron's configuration of a layer, plus what the wide stream and the experts' backend need to know."""

    altup_width: int = 1
    altup_variant: str = "altup"
    altup_select: str = "alternating"
    altup_level: Level = "layer"
    altup_correct: Correct = "next"
    altup_recycled: bool = True
    altup_kernel: str = "auto"
    altup_coef_clip: float | None = None
    sequence_stride: int = 1
    sequence_method: str = "altup"
    sequence_layers: range = range(0)
    sequence_decoder_layers: range = range(0)
    altup_context_width: int = 0
    activation: str = "silu"
    moe_backend: str = "megatron"
    fused: bool = False
    overlap_mixing: bool = True
    overlap_exchange: bool = True
    overlap_two_batch: bool = False
    overlap_two_steps: bool = False
    balance_over_step: bool = False
    loss_chunk: int | None = None
    compiled: bool = False


def uses_transformer_engine(asked: str) -> bool:
    """Whether `train.transformer_engine` comes out as yes on this machine."""
    found = torch.cuda.is_available() and PACKAGES["transformer_engine"].found()
    return asked == "on" or (asked == "auto" and found)


def transformer_config(config: RunConfig) -> AltUpTransformerConfig:
    """Translate a checked `RunConfig`. Sizes are global: Megatron divides them by the layout itself."""
    m, a, p, t = config.model, config.altup, config.parallel, config.train
    dtype = PRECISION_DTYPES[t.precision]
    return AltUpTransformerConfig(
        num_layers=m.total_layers,
        hidden_size=m.hidden_size,
        ffn_hidden_size=m.ffn_hidden_size,
        num_attention_heads=m.num_attention_heads,
        num_query_groups=m.num_query_groups,
        kv_channels=m.head_dim,
        qk_layernorm=m.qk_layernorm,
        layernorm_epsilon=m.layernorm_epsilon,
        attention_dropout=m.attention_dropout,
        hidden_dropout=m.hidden_dropout,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=ACTIVATIONS[m.activation],
        activation=m.activation,
        softmax_scale=m.architecture.attention_scale,
        add_bias_linear=False,
        bias_dropout_fusion=False,
        # Megatron's own region for a gated MLP; its decorator compiles it on a GPU.
        bias_activation_fusion=t.compile and m.activation == "silu",
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        # Weights are drawn by global name afterwards (parallel.seeds).
        perform_initialization=False,
        use_cpu_initialization=not torch.cuda.is_available(),
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        tensor_model_parallel_size=p.tensor,
        sequence_parallel=p.tensor > 1,
        pipeline_model_parallel_size=p.pipeline,
        virtual_pipeline_model_parallel_size=p.virtual_pipeline if p.virtual_pipeline > 1 else None,
        num_layers_in_first_pipeline_stage=p.first_stage_layers,
        num_layers_in_last_pipeline_stage=p.last_stage_layers,
        context_parallel_size=p.context,
        expert_model_parallel_size=p.expert,
        expert_tensor_parallel_size=p.expert_tensor,
        deallocate_pipeline_outputs=True,
        batch_p2p_comm=torch.cuda.is_available(),
        # Else Megatron waits for the whole device after each message, for a fault of older versions of torch, it says.
        batch_p2p_sync=False,
        **_recompute(config),
        **_experts(config),
        altup_width=a.width,
        altup_variant=a.variant,
        altup_select=a.select,
        altup_level=a.level,
        altup_correct=a.correct,
        altup_recycled=a.recycled,
        altup_kernel=a.kernel,
        altup_context_width=context_width(m.hidden_size, a.width, a.variant, a.cross_attention),
        altup_coef_clip=a.coef_clip,
        sequence_stride=config.sequence.stride,
        sequence_method=config.sequence.method,
        sequence_layers=strided_layers(config.sequence, m.num_layers),
        sequence_decoder_layers=strided_decoder_layers(config.sequence, m.decoder_layers),
        moe_backend=config.moe.backend,
        fused=uses_transformer_engine(config.train.transformer_engine),
        loss_chunk=t.loss_chunk,
        compiled=t.compile,
        overlap_mixing=defers_mixing(config),
        overlap_exchange=config.overlap.exchange == "async",
        overlap_two_batch=config.overlap.microbatch_halves,
        overlap_two_steps=walks_two_steps(config),
    )


def _recompute(config: RunConfig) -> dict:
    match config.train.recompute:
        case "full":
            return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
        case "selective":
            return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def _experts(config: RunConfig) -> dict:
    moe = config.moe
    if moe.num_experts == 0:
        return {}
    return {
        "num_moe_experts": moe.num_experts,
        "moe_layer_freq": moe.layer_freq,
        "moe_ffn_hidden_size": moe.ffn_hidden_size,
        "moe_router_topk": moe.top_k,
        # With one expert a token, a softmax over the chosen would always be 1 and give the router no gradient.
        "moe_router_pre_softmax": moe.score_function == "softmax" and moe.top_k == 1,
        "moe_router_score_function": moe.score_function,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss" if moe.aux_loss_coeff > 0 else "none",
        "moe_aux_loss_coeff": moe.aux_loss_coeff,
        "moe_z_loss_coeff": moe.z_loss_coeff or None,
        "moe_router_enable_expert_bias": moe.expert_bias_update_rate > 0,
        # Moved once a step is taken (train.routing), not while gradients are reduced: it may be skipped.
        "moe_router_bias_update_rate": 0.0,
        "balance_over_step": moe.balances_steps,
        "moe_expert_capacity_factor": moe.capacity_factor,
        "moe_shared_expert_intermediate_size": config.shared_expert_size or None,
        "moe_token_dispatcher_type": moe.dispatcher,
        "moe_grouped_gemm": uses_transformer_engine(config.train.transformer_engine) and moe.backend == "megatron",
    }
