"""Logits, or the cross-entropy of every token, from the hidden states before the output layer.

Losses are computed at once, or some positions at a time (train.loss_chunk).

A micro-batch's logits in fp32 are often its largest tensor (8,192 tokens times a vocabulary of 128k: 4.3 GB). In chunks
they are never whole: each chunk's are computed, and computed again for the backward pass, which costs one more product
with the output layer's matrix. (torchtitan's chunked loss and Liger's FusedLinearCrossEntropy have the same purpose.)

Shape legend: S positions of a context rank (hidden states: of a tensor rank), B samples, D features, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, vocab_parallel_cross_entropy
from torch import Tensor, cat
from torch.utils.checkpoint import checkpoint

from altup_moe.model.compiled_losses import compiled_token_losses
from altup_moe.model.transformer_config import AltUpTransformerConfig


def logits_or_losses(model: LanguageModule, hidden_SBD: Tensor, labels_BS: Tensor | None) -> Tensor:
    """What the last stage of a model returns, from what its output layer reads.

    Returns:
        Loss of every token [B, S], fp32, or without labels logits [B, S, V / tensor ranks].
    """
    tied, chunk = model.share_embeddings_and_output_weights, model.config.loss_chunk
    weight = model.shared_embedding_or_output_weight() if tied else None
    if labels_BS is not None and chunk is not None:
        matrix = model.output_layer.weight if weight is None else weight
        return chunked_token_losses(hidden_SBD, matrix, labels_BS, chunk, model.config)
    logits_SBV, _ = model.output_layer(hidden_SBD, weight=weight)
    if labels_BS is None:
        return logits_SBV.transpose(0, 1).contiguous()
    return token_losses(logits_SBV, labels_BS.t(), model.config.compiled).t().contiguous()


def token_losses(logits_SBV: Tensor, labels_SB: Tensor, compiled: bool) -> Tensor:
    """Loss of every token [S, B], fp32, in nats, from this tensor rank's columns of the logits."""
    if compiled:
        return compiled_token_losses(logits_SBV, labels_SB, parallel_state.get_tensor_model_parallel_group())
    return vocab_parallel_cross_entropy(logits_SBV.float(), labels_SB.contiguous())


def chunked_token_losses(
    hidden_SBD: Tensor, weight_VD: Tensor, labels_BS: Tensor, chunk: int, config: AltUpTransformerConfig
) -> Tensor:
    """Loss of every token [B, S], fp32, in nats.

    Args:
        hidden_SBD: under sequence parallelism this tensor rank's slice of the positions.
        weight_VD: this tensor rank's rows of the output layer.
        chunk: positions at a time, at least 1.
    """
    if config.sequence_parallel:
        # Its backward pass adds up what the ranks' rows of the matrix give to a position.
        hidden_SBD = gather_from_sequence_parallel_region(hidden_SBD, tensor_parallel_output_grad=True)
    pieces = zip(hidden_SBD.split(chunk), labels_BS.t().split(chunk), strict=True)
    losses = [checkpoint(_losses, h, weight_VD, each, config.compiled, use_reentrant=False) for h, each in pieces]
    return cat(losses).t().contiguous()


def _losses(hidden_CBD: Tensor, weight_VD: Tensor, labels_CB: Tensor, compiled: bool) -> Tensor:
    return token_losses(F.linear(hidden_CBD, weight_VD), labels_CB, compiled)
