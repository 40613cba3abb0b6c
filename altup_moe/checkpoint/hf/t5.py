"""Convert the configuration of a T5 v1.1 (`model_type: t5`) to a run's and back, for K = 1. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from altup_moe.checkpoint.hf.fields import HubModel, non_negative_field, positive_int_field, refusal
from altup_moe.config import ConfigError, ModelConfig, MoEConfig, RunConfig

_DEFAULTS: dict[str, Any] = {
    "num_decoder_layers": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
}
LENGTH = 512
"""Default sample length in tokens, that of T5's training; its position biases support any length."""


def from_t5(content: Mapping[str, Any], seq_length: int | None) -> HubModel:
    """The model of a T5's `config.json`.

    Args:
        seq_length: tokens of the encoder; None is `LENGTH`.
    Raises:
        ConfigError: a feed-forward that is not v1.1's, or a field that cannot be.
    """
    fields = {**_DEFAULTS, **content}
    if fields["feed_forward_proj"] != "gated-gelu":
        raise refusal("feed_forward_proj", fields["feed_forward_proj"], "gated-gelu would fit, as in T5 v1.1")
    layers, heads = positive_int_field(fields, "num_layers"), positive_int_field(fields, "num_heads")
    given = fields["num_decoder_layers"]
    # transformers 5 writes the flag as true whatever it was, and beside it what it had meant.
    tied = fields.get("scale_decoder_outputs", fields["tie_word_embeddings"])
    if type(tied) is not bool:
        raise refusal("tie_word_embeddings", tied, "true or false would fit")
    length = LENGTH if seq_length is None else seq_length
    if length < 1:
        raise ConfigError("--seq-length", seq_length, "at least 1 would fit")
    model = ModelConfig(
        num_layers=layers,
        hidden_size=positive_int_field(fields, "d_model"),
        ffn_hidden_size=positive_int_field(fields, "d_ff"),
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=length,
        vocab_size=positive_int_field(fields, "vocab_size"),
        share_embeddings_and_output_weights=tied,
        layernorm_epsilon=non_negative_field(fields, "layer_norm_epsilon"),
        # T5 drops out in more places (inside the feed-forward, embeddings, stacks' outputs), which ours have not.
        attention_dropout=non_negative_field(fields, "dropout_rate"),
        hidden_dropout=non_negative_field(fields, "dropout_rate"),
        kv_channels=positive_int_field(fields, "d_kv"),
        arch="t5",
        num_decoder_layers=None if given in (None, layers) else positive_int_field(fields, "num_decoder_layers"),
        relative_attention_num_buckets=positive_int_field(fields, "relative_attention_num_buckets"),
        relative_attention_max_distance=positive_int_field(fields, "relative_attention_max_distance"),
    )
    return HubModel("t5", model, MoEConfig(), length, None)


def plain_t5_config(config: RunConfig, dtype: str, special: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a plain dense encoder-decoder; arguments as of `hf.plain.plain_config`."""
    m = config.model
    start = special.get("decoder_start_token_id", special.get("pad_token_id"))
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": m.vocab_size,
        "d_model": m.hidden_size,
        "d_kv": m.head_dim,
        "d_ff": m.ffn_hidden_size,
        "num_layers": m.num_layers,
        "num_decoder_layers": m.decoder_layers,
        "num_heads": m.num_attention_heads,
        "relative_attention_num_buckets": m.relative_attention_num_buckets,
        "relative_attention_max_distance": m.relative_attention_max_distance,
        "dropout_rate": m.hidden_dropout,
        "layer_norm_epsilon": m.layernorm_epsilon,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": m.share_embeddings_and_output_weights,
        "torch_dtype": dtype,
        "use_cache": True,
        **special,
        "decoder_start_token_id": start,
    }
