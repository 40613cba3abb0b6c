"""The proof of a conversion: both models' logits on the same random tokens, in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import load_weights
from altup_moe.config import ModelConfig
from altup_moe.model.reference.build import ReferenceModel, reference_model
from altup_moe.train.batches import Batch


def model_of(directory: Path) -> ReferenceModel:
    """The reference model of a checkpoint, on a CPU."""
    with Checkpoint(directory) as checkpoint:
        model = reference_model(checkpoint.config)
        model.load_state_dict(load_weights(checkpoint), strict=True)
    return model


@torch.no_grad()
def logits_of(build: Callable[[], Any], model: ModelConfig) -> Tensor:
    """fp32 logits of a model on seeded random tokens, [2, S, V] with S at most 64. It is built here: one at a time."""
    shape = (2, min(64, model.seq_length))
    tokens = torch.randint(model.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    if model.encoder_decoder:
        return build().float().eval()(tokens, decoder_input_ids=tokens.flip(1), use_cache=False).logits
    return build().float().eval()(tokens, use_cache=False).logits


def batch_logits(model: ReferenceModel, batch: Batch) -> Tensor:
    """fp32 logits of a batch's labels [B, S, V]."""
    if batch.encoder_tokens is None:
        return model(batch.tokens, use_cache=False).logits.float()
    inputs = (batch.encoder_tokens, batch.encoder_mask, batch.tokens)
    return model(*inputs, use_cache=False).logits.float()
