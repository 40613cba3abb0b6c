"""Tiny random models of every family that can be imported, saved as transformers saves them, with a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from altup_moe.data.tokenizer import train_bpe

TEXT = "the cat sat on the mat, the dog lay on the log, and the bird flew over the house.\n" * 4
SHAPE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "rms_norm_eps": 1e-5,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama tied, stretched": LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**{**SHAPE, "hidden_size": 36}, head_dim=10, sliding_window=48),
    "qwen3": Qwen3Config(**SHAPE, head_dim=12, tie_word_embeddings=True),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **SHAPE, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
        decoder_sparse_step=2,
    ),
    "qwen3_moe top 1": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=24, norm_topk_prob=False,
    ),
}  # fmt: skip


def save_model(directory: Path, name: str, shard: str = "5GB", dtype: torch.dtype = torch.float32) -> Any:
    """Save one of `MODELS` with norms off 1. Returns it in evaluation mode."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    for parameter_name, parameter in model.named_parameters():
        if "norm" in parameter_name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    model = model.to(dtype)
    model.save_pretrained(directory, max_shard_size=shard)
    train_bpe([TEXT], 290, directory)
    return model
