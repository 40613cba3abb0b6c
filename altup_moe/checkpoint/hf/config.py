"""Convert a Hugging Face `config.json` to sections of a run configuration. Pure.

Families: llama, mistral, qwen3 (dense), mixtral, qwen3_moe, and t5 (v1.1; `hf_t5`). Whatever their layers have and ours
lack is refused by the name of its field, never left out silently. Fields that are absent have transformers' defaults
(5.23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from altup_moe.checkpoint.hf.balance import from_hub_balance
from altup_moe.checkpoint.hf.fields import HubModel, bool_field, non_negative_field, positive_int_field, refusal
from altup_moe.checkpoint.hf.t5 import from_t5
from altup_moe.config import ConfigError, ModelConfig, MoEConfig
from altup_moe.config.hub_directory import OWN_TYPES, USE_THE_RUN

LLAMA3 = {"low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
"""Constants of Llama 3.1's RoPE scaling; only its `factor` is configurable."""

_COMMON: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "router_aux_loss_coef": 0.001,
}
_QWEN3 = {"head_dim": 128, "num_key_value_heads": 32, "use_sliding_window": False, "sliding_window": 4096}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen3": _QWEN3,
    "mixtral": {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6},
    "qwen3_moe": {**_QWEN3, "head_dim": None, "num_key_value_heads": 4, "decoder_sparse_step": 1}
    | {"norm_topk_prob": False, "mlp_only_layers": None},
}
FAMILIES = (*_DEFAULTS, "t5")
"""Values of `model_type` that can be imported."""
QK_NORM = ("qwen3", "qwen3_moe")
"""Families that normalise queries and keys."""


def from_hub(content: Mapping[str, Any], seq_length: int | None = None, at_most: int = 4096) -> HubModel:
    """The model of a `config.json`.

    Args:
        content: the parsed file.
        seq_length: tokens of a sample; None is what the model was made for, but no more than `at_most`.
    Raises:
        ConfigError: another family, or something of it that ours has not; `seq_length` beyond what it was made for.
    """
    family = content.get("model_type")
    if family == "t5":
        _refuse_what_nobody_reads(content)
        return from_t5(content, seq_length)
    if family in OWN_TYPES:
        raise refusal("model_type", family, USE_THE_RUN)
    if family not in _DEFAULTS:
        raise refusal("model_type", family, f"one of {', '.join(FAMILIES)} would fit")
    fields = {**_COMMON, **_DEFAULTS[family], **content}
    _refuse_what_we_lack(fields)
    window = _window(family, fields)
    positions = min(positive_int_field(fields, "max_position_embeddings"), window or math.inf)
    if seq_length is not None and not 1 <= seq_length <= positions:
        limit = f"config.json {'sliding_window' if positions == window else 'max_position_embeddings'}"
        raise ConfigError("--seq-length", seq_length, f"1 to {positions} would fit ({limit})")
    heads, hidden = positive_int_field(fields, "num_attention_heads"), positive_int_field(fields, "hidden_size")
    groups = heads if fields["num_key_value_heads"] is None else positive_int_field(fields, "num_key_value_heads")
    channels = None if fields["head_dim"] is None else positive_int_field(fields, "head_dim")
    theta, factor = _rotary(fields)
    moe, dense = _experts(family, fields)
    model = ModelConfig(
        num_layers=positive_int_field(fields, "num_hidden_layers"),
        hidden_size=hidden,
        ffn_hidden_size=dense,
        num_attention_heads=heads,
        num_query_groups=groups,
        seq_length=seq_length or int(min(positions, at_most)),
        vocab_size=positive_int_field(fields, "vocab_size"),
        share_embeddings_and_output_weights=bool_field(fields, "tie_word_embeddings"),
        rotary_base=theta,
        layernorm_epsilon=non_negative_field(fields, "rms_norm_eps"),
        init_method_std=non_negative_field(fields, "initializer_range"),
        attention_dropout=non_negative_field(fields, "attention_dropout"),
        kv_channels=None if channels is not None and channels * heads == hidden else channels,
        qk_layernorm=family in QK_NORM,
        rotary_scaling_factor=factor,
    )
    if positions > model.seq_length:
        model = replace(model, max_positions=int(positions))
    return HubModel(family, model, moe, int(positions), window)


def _refuse_what_we_lack(fields: Mapping[str, Any]) -> None:
    for name in ("attention_bias", "mlp_bias"):
        if bool_field(fields, name):
            raise refusal(name, True, "our layers have no biases; false would fit")
    if fields["hidden_act"] not in ("silu", "swish"):
        raise refusal("hidden_act", fields["hidden_act"], "silu would fit")
    _refuse_what_nobody_reads(fields)


def _refuse_what_nobody_reads(fields: Mapping[str, Any]) -> None:
    if fields.get("quantization_config") is not None:
        raise refusal("quantization_config", "...", "weights must be floating-point numbers; null would fit")
    if fields.get("auto_map") is not None:
        raise refusal("auto_map", "...", "the model brings its own code, which is never run; null would fit")


def _window(family: str, fields: Mapping[str, Any]) -> int | None:
    """Size of the sliding attention window in tokens; None for full attention."""
    kinds = fields.get("layer_types") or ["full_attention"]
    other = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if other:
        raise refusal("layer_types", other[0], "full_attention would fit")
    if family in QK_NORM and not bool_field(fields, "use_sliding_window"):
        return None
    return None if fields["sliding_window"] is None else positive_int_field(fields, "sliding_window")


def _rotary(fields: Mapping[str, Any]) -> tuple[int, float | None]:
    """(RoPE base, factor of Llama 3.1's scaling or None), from `rope_parameters` (new) or `rope_scaling` (old)."""
    name = "rope_parameters" if fields.get("rope_parameters") is not None else "rope_scaling"
    rope = fields.get(name) or {}
    if not isinstance(rope, dict):
        raise refusal(name, rope, "an object would fit")
    partial = rope.get("partial_rotary_factor", fields["partial_rotary_factor"])
    if partial != 1:
        raise refusal("partial_rotary_factor", partial, "RoPE turns all features of a head; 1.0 would fit")
    theta = rope.get("rope_theta", fields["rope_theta"])
    if not isinstance(theta, int | float) or theta < 1 or theta != int(theta):
        raise refusal("rope_theta", theta, "model.rotary_base takes whole numbers")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return int(theta), None
    if kind != "llama3":
        raise refusal(f"{name}.rope_type", kind, "default or llama3 would fit")
    for constant, value in LLAMA3.items():
        if rope.get(constant) != value:
            raise refusal(f"{name}.{constant}", rope.get(constant), f"{value} would fit, as in Llama 3.1")
    return int(theta), non_negative_field(rope, "factor")


def _experts(family: str, fields: Mapping[str, Any]) -> tuple[MoEConfig, int]:
    """(experts, inner width of dense layers)."""
    inner = positive_int_field(fields, "intermediate_size")
    if family not in ("mixtral", "qwen3_moe"):
        return MoEConfig(), inner
    renamed = "num_local_experts" if "num_local_experts" in fields else "num_experts"
    experts, top_k = positive_int_field(fields, renamed), positive_int_field(fields, "num_experts_per_tok")
    # Ours normalises over the chosen experts, but for a single one keeps its share of all.
    if family == "mixtral" and top_k == 1:
        raise refusal("num_experts_per_tok", 1, "its one expert would always weigh 1; 2 or more would fit")
    if family == "qwen3_moe" and bool_field(fields, "norm_topk_prob") != (top_k > 1):
        raise refusal("norm_topk_prob", top_k == 1, f"{top_k > 1} would fit with num_experts_per_tok {top_k}")
    moe = MoEConfig(
        num_experts=experts,
        layer_freq=1 if family == "mixtral" else _layer_freq(fields),
        top_k=top_k,
        ffn_hidden_size=inner if family == "mixtral" else positive_int_field(fields, "moe_intermediate_size"),
    )
    layers = positive_int_field(fields, "num_hidden_layers")
    weight = from_hub_balance(non_negative_field(fields, "router_aux_loss_coef"), layers, moe)
    return replace(moe, aux_loss_coeff=weight), inner


def _layer_freq(fields: Mapping[str, Any]) -> int:
    """Period of the MoE layers, in layers."""
    layers, step = positive_int_field(fields, "num_hidden_layers"), positive_int_field(fields, "decoder_sparse_step")
    dense = fields["mlp_only_layers"] or []
    with_experts = [n for n in range(layers) if n not in dense and (n + 1) % step == 0]
    for freq in range(1, layers + 1):
        if with_experts == list(range(freq - 1, layers, freq)):
            return freq
    fits = "layers with experts must be every n-th (moe.layer_freq)"
    if dense:
        raise refusal("mlp_only_layers", dense, f"{fits}; [] would fit")
    raise refusal("decoder_sparse_step", step, f"{fits}; at most num_hidden_layers ({layers}) would fit")
