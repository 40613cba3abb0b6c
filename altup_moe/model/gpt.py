"""The decoder-only language model of one pipeline stage: embed and widen, layers, narrow and norm, loss."""

from __future__ import annotations

import copy

from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor

from altup_moe.altup.shape import embedding_width, has_projections, output_width
from altup_moe.altup.stream import widen
from altup_moe.config import ModelConfig, RunConfig
from altup_moe.model.altup_block import AltUpBlock
from altup_moe.model.padding import on_tensor_rank
from altup_moe.model.rotary import compile_rotary
from altup_moe.model.specs import stage_spec
from altup_moe.model.stream_ends import Expand
from altup_moe.model.token_losses import logits_or_losses
from altup_moe.model.transformer_config import AltUpTransformerConfig, transformer_config
from altup_moe.parallel.topology import Topology


class AltUpGPT(LanguageModule):
    """One model chunk. Shape legend: K blocks, S positions, B samples, D width of a block, V vocabulary."""

    def __init__(
        self,
        config: AltUpTransformerConfig,
        model: ModelConfig,
        topology: Topology,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        super().__init__(config=config, pg_collection=topology.groups)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process, self.post_process, self.vp_stage = pre_process, post_process, vp_stage
        self.share_embeddings_and_output_weights = model.share_embeddings_and_output_weights
        self.stream_shape = (config.altup_width, config.altup_variant, config.altup_recycled)
        learned = pre_process and has_projections(config.altup_width, config.altup_variant)
        self.expand = Expand(config) if learned else None
        if pre_process:
            wide = copy.copy(config)
            wide.hidden_size = embedding_width(config.hidden_size, config.altup_width, config.altup_recycled)
            wide.hidden_dropout = 0.0
            self.embedding = LanguageModelEmbedding(
                wide, model.vocab_size, model.seq_length, position_embedding_type="rope", tp_group=topology.groups.tp
            )
        if config.compiled:
            compile_rotary()
        self.rotary_pos_emb = RotaryEmbedding(
            model.head_dim,
            rotary_percent=1.0,
            rotary_base=model.rotary_base,
            rope_scaling=model.rotary_scaling_factor is not None,
            rope_scaling_factor=model.rotary_scaling_factor or 1.0,
            use_cpu_initialization=config.use_cpu_initialization,
            cp_group=topology.groups.cp,
        )
        self.decoder = AltUpBlock(
            config,
            stage_spec(config, topology, vp_stage),
            pre_process=pre_process,
            post_process=post_process,
            pg_collection=topology.groups,
            vp_stage=vp_stage,
        )
        if post_process:
            self.output_layer = tensor_parallel.ColumnParallelLinear(
                output_width(config.hidden_size, *self.stream_shape),
                model.vocab_size,
                config=config,
                init_method=config.init_method,
                bias=False,
                skip_weight_param_allocation=pre_process and self.share_embeddings_and_output_weights,
                tp_group=topology.groups.tp,
            )
        self.setup_embeddings_and_output_layer()

    def set_input_tensor(self, input_tensor: Tensor | list[Tensor]) -> None:
        """Megatron's schedules hand over what the previous stage sent: the stream [K*S, B, D]."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def forward(self, tokens: Tensor, labels: Tensor | None = None, padding_mask: Tensor | None = None) -> Tensor:
        """One micro-batch through this chunk.

        Args:
            tokens: [B, S] ids. labels: [B, S], the next tokens, or None. padding_mask: bool [B, S], True on padding,
                which ends rows and goes to no expert; None has none.
        Returns:
            Last chunk: loss of every token [B, S] fp32, or without labels logits [B, S, V / tensor ranks].
            Other chunks: the stream.
        """
        stream = None
        if self.pre_process:
            # LanguageModelEmbedding returns this rank's slice of the sequence, so S below is S / tensor ranks.
            embedded = self.embedding(input_ids=tokens, position_ids=None)
            stream = widen(embedded, *self.stream_shape) if self.expand is None else self.expand(embedded)
        rotary = self.rotary_pos_emb(tokens.shape[1] * self.config.context_parallel_size)
        if padding_mask is not None:
            padding_mask = on_tensor_rank(padding_mask, self.config, self.tp_group)
        hidden = self.decoder(
            hidden_states=stream, attention_mask=None, rotary_pos_emb=rotary, padding_mask=padding_mask
        )
        # The chunk would hold the stream and its gradient until the schedule hands over the next one.
        self.decoder.set_input_tensor(None)
        if not self.post_process:
            return hidden
        return logits_or_losses(self, hidden, labels)


def gpt_chunk(config: RunConfig, topology: Topology, first: bool, last: bool, vp_stage: int | None) -> AltUpGPT:
    """One model chunk. ``first``: whether it embeds. ``last``: whether it computes logits."""
    return AltUpGPT(transformer_config(config), config.model, topology, first, last, vp_stage)
