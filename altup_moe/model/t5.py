"""The encoder-decoder language model: T5 v1.1 with an AltUp stream in each stack. It has no pipeline stages."""

from __future__ import annotations

import copy
from typing import Any

from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from altup_moe.altup.shape import embedding_width, output_width
from altup_moe.altup.stream import widen
from altup_moe.config import AltUpConfig, ModelConfig, RunConfig
from altup_moe.model.altup_block import AltUpBlock
from altup_moe.model.attention import HeadParallelRelativeBias
from altup_moe.model.flops import StackKind
from altup_moe.model.padding import on_tensor_rank
from altup_moe.model.specs import stack_spec
from altup_moe.model.token_losses import logits_or_losses
from altup_moe.model.transformer_config import AltUpTransformerConfig, transformer_config
from altup_moe.moe.records import RecordsRouting
from altup_moe.parallel.topology import Topology


class AltUpT5(LanguageModule):
    """The whole model on a rank.

    Shape legend: K blocks, S positions of the decoder, T of the encoder, B samples, D width of a block, E features of
    the encoder's output, V vocabulary.
    """

    vp_stage = None

    def __init__(
        self, config: AltUpTransformerConfig, model: ModelConfig, altup: AltUpConfig, topology: Topology
    ) -> None:
        super().__init__(config=config, pg_collection=topology.groups)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = self.post_process = True
        self.share_embeddings_and_output_weights = model.share_embeddings_and_output_weights
        self.stream_shape = (config.altup_width, config.altup_variant, config.altup_recycled)
        wide = copy.copy(config)
        wide.hidden_size = embedding_width(config.hidden_size, config.altup_width, config.altup_recycled)
        wide.hidden_dropout = 0.0
        # "rope": no table of absolute positions.
        self.embedding = LanguageModelEmbedding(
            wide, model.vocab_size, model.seq_length, position_embedding_type="rope", tp_group=topology.groups.tp
        )
        # How an encoder ends is the cross-attention's wish, whatever the tables are.
        ends = copy.copy(config)
        ends.altup_recycled = altup.cross_attention == "narrow"
        self.encoder = self._stack(ends, topology, model.num_layers, "encoder")
        self.decoder = self._stack(config, topology, model.decoder_layers, "cross_decoder")
        table = (model.relative_attention_num_buckets, model.relative_attention_max_distance)
        self.encoder_bias = HeadParallelRelativeBias(config, *table, bidirectional=True)
        self.decoder_bias = HeadParallelRelativeBias(config, *table, bidirectional=False)
        for module in self.decoder.modules():
            if isinstance(module, RecordsRouting):
                module.layer_number += model.num_layers  # layers are counted through both stacks
        for module in self.encoder.modules():
            if isinstance(module, RecordsRouting):
                module.in_encoder = True
        features = output_width(config.hidden_size, *self.stream_shape)
        # T5's embeddings have unit variance: tied, they would make logits of the root of the width.
        self.output_scale = features**-0.5 if self.share_embeddings_and_output_weights else 1.0
        self.output_layer = tensor_parallel.ColumnParallelLinear(
            features,
            model.vocab_size,
            config=config,
            init_method=config.init_method,
            bias=False,
            skip_weight_param_allocation=self.share_embeddings_and_output_weights,
            tp_group=topology.groups.tp,
        )
        self.setup_embeddings_and_output_layer()

    @staticmethod
    def _stack(config: AltUpTransformerConfig, topology: Topology, layers: int, kind: StackKind) -> AltUpBlock:
        spec = stack_spec(config, topology, layers, kind)
        return AltUpBlock(config, spec, pre_process=True, post_process=True, pg_collection=topology.groups)

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Megatron's schedules ask for it; there is no stage before this one."""

    def forward(
        self,
        tokens: Tensor,
        labels: Tensor | None,
        encoder_tokens: Tensor,
        encoder_mask: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """One micro-batch.

        Args:
            tokens: the decoder's input [B, S], which begins with the start token. labels: [B, S], or None.
            encoder_tokens: [B, T]. encoder_mask: [B, T], 1 on tokens and 0 on padding.
            padding_mask: the decoder's, bool [B, S], True on padding. No expert sees padding, the encoder's neither.
        Returns:
            Loss of every label [B, S] fp32, or without labels logits [B, S, V / tensor ranks].
        """
        padding = (encoder_mask == 0)[:, None, None, :]
        if padding_mask is not None:
            padding_mask = on_tensor_rank(padding_mask, self.config, self.tp_group)
        # Under sequence parallelism both are this rank's slices, and the linear layers that read them gather them.
        context_TBE = self.encoder(
            hidden_states=self._widened(encoder_tokens),
            attention_mask=padding,
            attention_bias=self.encoder_bias,
            padding_mask=on_tensor_rank(encoder_mask == 0, self.config, self.tp_group),
        )
        hidden = self.decoder(
            hidden_states=self._widened(tokens),
            context=context_TBE,
            context_mask=padding,
            attention_bias=self.decoder_bias,
            padding_mask=padding_mask,
        )
        return logits_or_losses(self, hidden * self.output_scale, labels)

    def _widened(self, tokens: Tensor) -> Tensor:
        return widen(self.embedding(input_ids=tokens, position_ids=None), *self.stream_shape)


def t5_chunk(config: RunConfig, topology: Topology, first: bool, last: bool, vp_stage: int | None) -> AltUpT5:
    """The whole model, which is the only chunk: there are no pipeline stages."""
    return AltUpT5(transformer_config(config), config.model, config.altup, topology)
