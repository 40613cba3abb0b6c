"""Find the transformers family that computes the same function as a run's model, and write its `config.json`. Pure."""

from __future__ import annotations

from typing import Any

from altup_moe.checkpoint.hf.balance import to_hub_balance
from altup_moe.checkpoint.hf.config import LLAMA3
from altup_moe.checkpoint.hf.t5 import plain_t5_config
from altup_moe.config import ConfigError, RunConfig

TRANSFORMERS_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
"""Family (`model_type`) -> class in transformers."""


def plain_family(config: RunConfig) -> str:
    """The family (`model_type`) whose model computes the same function.

    Raises:
        ConfigError: there is none; the error names the key that no family supports.
    """
    m, a, moe = config.model, config.altup, config.moe
    if a.width > 1:
        raise ConfigError("altup.width", a.width, "no plain model has a wide stream; 1 would fit, or leave out --plain")
    if a.correct == "delayed":
        fits = "no plain model's outputs are delayed; next would fit, or leave out --plain"
        raise ConfigError("altup.correct", a.correct, fits)
    stride = config.sequence.stride
    if stride > 1:
        raise ConfigError("sequence.stride", stride, "no plain model strides; 1 would fit, or leave out --plain")
    if m.encoder_decoder:
        if moe.num_experts:
            raise ConfigError("moe.num_experts", moe.num_experts, "T5 is dense; 0 would fit, or leave out --plain")
        return "t5"
    if moe.num_experts == 0:
        if m.qk_layernorm:
            return "qwen3"
        # Llama's configuration insists that heads divide the width; Mistral's layer is the same.
        return "mistral" if m.hidden_size % m.num_attention_heads else "llama"
    instead = "would fit, or leave out --plain"
    if moe.score_function != "softmax":
        raise ConfigError("moe.score_function", moe.score_function, f"softmax {instead}")
    if moe.partial:
        raise ConfigError("moe.partial", True, f"no family has a dense MLP beside its experts; false {instead}")
    if moe.shared_expert_size:
        raise ConfigError("moe.shared_expert_size", moe.shared_expert_size, f"0 {instead}")
    if m.qk_layernorm:
        return "qwen3_moe"
    if moe.layer_freq > 1:
        raise ConfigError("moe.layer_freq", moe.layer_freq, f"Mixtral has experts in every layer; 1 {instead}")
    if moe.top_k == 1:
        raise ConfigError("moe.top_k", 1, f"Mixtral's one expert always weighs 1; 2 or more {instead}")
    return "mixtral"


def plain_config(config: RunConfig, dtype: str, special: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a plain model, with RoPE in the older form that every version of transformers reads.

    Args:
        dtype: torch's name of the weights' type.
        special: ids of special tokens, e.g. ``eos_token_id``.
    Raises:
        ConfigError: see `plain_family`.
    """
    m, moe, family = config.model, config.moe, plain_family(config)
    if family == "t5":
        return plain_t5_config(config, dtype, special)
    content: dict[str, Any] = {
        "architectures": [TRANSFORMERS_CLASSES[family]],
        "model_type": family,
        "vocab_size": m.vocab_size,
        "hidden_size": m.hidden_size,
        "intermediate_size": m.ffn_hidden_size,
        "num_hidden_layers": m.num_layers,
        "num_attention_heads": m.num_attention_heads,
        "num_key_value_heads": m.num_query_groups,
        "head_dim": m.head_dim,
        "max_position_embeddings": m.positions,
        "hidden_act": "silu",
        "initializer_range": m.init_method_std,
        "rms_norm_eps": m.layernorm_epsilon,
        "rope_theta": float(m.rotary_base),
        "rope_scaling": None,
        "attention_dropout": m.attention_dropout,
        "tie_word_embeddings": m.share_embeddings_and_output_weights,
        "torch_dtype": dtype,
        "use_cache": True,
        **special,
    }
    if m.rotary_scaling_factor is not None:
        content["rope_scaling"] = {"rope_type": "llama3", "factor": m.rotary_scaling_factor, **LLAMA3}
    if family == "llama":
        content |= {"attention_bias": False, "mlp_bias": False}
    elif family in ("mistral", "mixtral"):
        content["sliding_window"] = None
    else:
        content |= {"attention_bias": False, "use_sliding_window": False, "sliding_window": None}
    if family in ("mixtral", "qwen3_moe"):
        content |= {"num_experts_per_tok": moe.top_k, "router_aux_loss_coef": to_hub_balance(config)}
    if family == "mixtral":
        content |= {"num_local_experts": moe.num_experts, "intermediate_size": moe.ffn_hidden_size}
    if family == "qwen3_moe":
        content |= {
            "num_experts": moe.num_experts,
            "moe_intermediate_size": moe.ffn_hidden_size,
            "decoder_sparse_step": moe.layer_freq,
            "mlp_only_layers": [],
            # One expert keeps its share of the softmax over all, as in ours.
            "norm_topk_prob": moe.top_k > 1,
        }
    return content
