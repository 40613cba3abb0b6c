"""The encoder-decoder in plain PyTorch: T5 v1.1 (arXiv 1910.10683, 2002.05202) with AltUp streams in both stacks.

Beside `gpt.py`, with its layers. Importing this module teaches `AutoModelForSeq2SeqLM` the type `altup_moe_t5`.

Shape legend: as in `gpt.py`; S positions of the stack at hand, T positions that are looked at, H heads,
C features of a head, E features of the encoder's output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from altup_moe.model.reference.cache_name import CACHE, CACHE_NAMES, given_cache
from altup_moe.model.reference.gpt import Decoder, Layer, Losses, sum_or_concatenate, walk
from altup_moe.model.reference.layers import DROPLESS, RMSNorm, Router, Routing, RoutingInput, attention_mask, full
from altup_moe.model.reference.sequence import (
    Anchors,
    Strided,
    StridedEncoder,
    token_order,
    turn,
    unpadded_start,
)
from altup_moe.model.reference.streams import Stream
from altup_moe.model.reference.t5_config import AltUpMoET5Config
from altup_moe.model.relative import relative_buckets
from altup_moe.parallel.seeds import t5_std


class RelativeBias(nn.Module):
    """What is added to a stack's attention scores: a number for each head and bucket of distances."""

    def __init__(self, config: AltUpMoET5Config, bidirectional: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.relative_attention_num_buckets, config.num_attention_heads))
        self.max_distance, self.bidirectional = config.relative_attention_max_distance, bidirectional

    def forward(self, queries_BS: Tensor, keys_BT: Tensor) -> Tensor:
        """Bias [B or 1, H, S, T] of queries and keys at these positions, [B or 1, S] and [B or 1, T]."""
        distances = keys_BT[:, None, :] - queries_BS[:, :, None]
        buckets = relative_buckets(distances, len(self.weight), self.max_distance, self.bidirectional)
        return self.weight[buckets].permute(0, 3, 1, 2)


class Queries(nn.Linear):
    """The projection to queries; its initial weights carry the scale of the scores."""


class T5Attention(nn.Module):
    """softmax(Q K^T + bias) V, without a scale: T5 has it in the queries' initial weights."""

    def __init__(self, config: AltUpMoET5Config, source_width: int) -> None:
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.head_dim, self.dropout = config.head_dim, config.attention_dropout
        self.q_proj = Queries(config.hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(source_width, inner, bias=False)
        self.v_proj = nn.Linear(source_width, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def heads(self, projected: Tensor) -> Tensor:
        """[B, S, H*C] -> [B, H, S, C]."""
        return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def keys_values(self, source_BTE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, C] of what is looked at."""
        return self.heads(self.k_proj(source_BTE)), self.heads(self.v_proj(source_BTE))

    def forward(self, x_BSD: Tensor, k_BHTC: Tensor, v_BHTC: Tensor, bias: Tensor | None, visible: Tensor) -> Tensor:
        """`bias` [1, H, S, T]; `visible` bool [B or 1, 1, S or 1, T]. A query that sees nothing sees all alike."""
        scores_BHST = self.heads(self.q_proj(x_BSD)) @ k_BHTC.transpose(2, 3)
        if bias is not None:
            scores_BHST = scores_BHST + bias
        scores_BHST = scores_BHST.masked_fill(~visible, torch.finfo(scores_BHST.dtype).min)
        weights_BHST = full(scores_BHST).softmax(-1).to(v_BHTC.dtype)
        y_BHSC = F.dropout(weights_BHST, self.dropout, self.training) @ v_BHTC
        return self.o_proj(y_BHSC.transpose(1, 2).flatten(2))


class T5Layer(Layer):
    """A pre-norm layer on one block: self-attention, in a decoder attention to the encoder's output, feed-forward."""

    self_attn: Any  # its own kind of attention

    def __init__(self, config: AltUpMoET5Config, layer: int, decodes: bool) -> None:
        super().__init__(config, layer)
        d, eps = config.hidden_size, config.rms_norm_eps
        self.layer = layer
        self.self_attn = T5Attention(config, d)
        self.cross_attn_layernorm = RMSNorm(d, eps) if decodes else None
        self.cross_attn = T5Attention(config, config.context_width) if decodes else None
        strides = config.decoder_strides(layer) if decodes else config.is_strided(layer)
        self.sequence = (Strided if decodes else StridedEncoder)(config, layer) if strides else None

    def compute(
        self,
        x_BSD: Tensor,
        given: RoutingInput,
        *attention: Any,
        order_BS: Tensor | None = None,
        relative: RelativeBias | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """y = F(x) on all tokens, or by way of the anchors, which have biases of their own and all of the context."""
        if self.sequence is None:
            return self.transform(x_BSD, given, *attention)
        *_, context_BTE, context_visible, cache = attention
        assert order_BS is not None
        assert relative is not None

        def run(u_BAD: Tensor, where: Anchors) -> tuple[Tensor, Routing | None]:
            bias = relative(where.positions_BA, where.keys_BT)
            anchors = given.at(where.positions_BA)
            return self.transform(u_BAD, anchors, bias, where.visible, context_BTE, context_visible, cache)

        own = None if cache is None else cache.self_attention_cache
        return self.sequence(x_BSD, run, order_BS, own, order_BS)

    def attend(self, x_BSD: Tensor, *attention: Any) -> Tensor:
        """Attention to the stack itself, then to the encoder's output."""
        bias, visible, context_BTE, context_visible, cache = attention
        normed = self.input_layernorm(x_BSD)
        keys, values = self.self_attn.keys_values(normed)
        if cache is not None:
            keys, values = cache.self_attention_cache.update(keys, values, self.layer)
        branch = self.self_attn(normed, keys, values, bias, visible)
        h_BSD = x_BSD + F.dropout(branch, self.dropout, self.training)
        if self.cross_attn is None or self.cross_attn_layernorm is None:
            return h_BSD
        keys, values = self._context(context_BTE, cache)
        branch = self.cross_attn(self.cross_attn_layernorm(h_BSD), keys, values, None, context_visible)
        return h_BSD + F.dropout(branch, self.dropout, self.training)

    def _context(self, context_BTE: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, which are the same for every token that is generated."""
        assert self.cross_attn is not None
        if cache is None:
            return self.cross_attn.keys_values(context_BTE)
        crossed = cache.cross_attention_cache
        if not cache.is_updated.get(self.layer):
            crossed.update(*self.cross_attn.keys_values(context_BTE), self.layer)
            cache.is_updated[self.layer] = True
        return crossed.layers[self.layer].keys, crossed.layers[self.layer].values


class Stack(nn.Module):
    """Widened stream, layers, narrowing and the final norm. An encoder's output is the blocks' sum or all of them."""

    main_input_name = "input_ids"  # `generate` asks the encoder

    def __init__(self, config: AltUpMoET5Config, decodes: bool) -> None:
        super().__init__()
        self.config, self.decodes = config, decodes
        layers = config.decoder_layers if decodes else config.num_hidden_layers
        self.relative_attention_bias = RelativeBias(config, bidirectional=not decodes)
        self.layers = nn.ModuleList(T5Layer(config, n, decodes) for n in range(layers))
        self.strides = any(layer.sequence is not None for layer in self.layers)
        self.summed = config.altup_recycled if decodes else config.altup_cross_attention == "narrow"
        self.norm = RMSNorm(config.output_width if decodes else config.context_width, config.rms_norm_eps)

    def forward(
        self,
        embedded: Tensor,
        padding_BS: Tensor | None,
        context_BTE: Tensor | None = None,
        context_padding_BT: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        given: RoutingInput = DROPLESS,
    ) -> tuple[Tensor, dict[int, Routing]]:
        """Embedded tokens [B, S, D or K*D] -> normed features [B, S, ...], and what each MoE layer decided.

        Args:
            padding_BS: 1 on tokens, 0 on padding (of the past as well, with a cache); None is all tokens.
            context_BTE, context_padding_BT: the encoder's output and what of it is tokens, for a decoder.
        """
        turned = None
        if self.strides and not self.decodes and padding_BS is not None:
            # Windows are counted from a row's first token.
            turned = unpadded_start(padding_BS)
            if turned is not None:
                embedded, padding_BS = turn(embedded, turned), padding_BS.gather(1, turned)
        s, device = embedded.shape[1], embedded.device
        past = 0 if cache is None else int(cache.get_seq_length())
        if self.decodes:
            ones = torch.ones(embedded.shape[0], past + s, device=device) if padding_BS is None else padding_BS
            visible = attention_mask(ones, s, past, device)
        else:
            visible = _tokens(padding_BS, s, device)
        context_visible = None if context_BTE is None else _tokens(context_padding_BT, context_BTE.shape[1], device)
        positions = torch.arange(past + s, device=device)[None]
        bias = self.relative_attention_bias(positions[:, past:], positions)
        x_KBSD: Tensor = Decoder.widen(self, embedded)  # type: ignore[arg-type]
        x_KBSD, routings = walk(
            self.layers, x_KBSD, given, bias, visible, context_BTE, context_visible, cache,
            order_BS=token_order(padding_BS, s, past, device) if self.strides else None,
            relative=self.relative_attention_bias,
        )  # fmt: skip
        features = self.norm(sum_or_concatenate(x_KBSD, self.summed))
        return features if turned is None else turn(features, turned.argsort(1)), routings


def _tokens(padding_BS: Tensor | None, s: int, device: torch.device) -> Tensor:
    """Bool [B or 1, 1, 1, S]: which positions are tokens."""
    ones = torch.ones(1, s, device=device) if padding_BS is None else padding_BS
    return ones[:, None, None, :].bool()


class Encoding:
    """The encoder with its embedding, as `generate` wants to call it."""

    def __init__(self, model: AltUpMoEForConditionalGeneration) -> None:
        self._model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """The encoder's output [B, S, E]."""
        output, _routings = self._model.encoder(self._model.shared(input_ids), attention_mask)
        return BaseModelOutput(last_hidden_state=output)

    __call__ = forward


class AltUpMoEForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The encoder-decoder. Parameter names are the project's global names; a tied model has no `lm_head.weight`."""

    config_class = AltUpMoET5Config
    base_model_prefix = "model"
    _no_split_modules = ("T5Layer",)
    _skip_keys_device_placement = CACHE_NAMES
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = (r"\.altup\.", r"\.sequence\.", "expert_bias", "expert_load")

    def __init__(self, config: AltUpMoET5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.embedding_width)
        self.encoder = Stack(config, decodes=False)
        self.decoder = Stack(config, decodes=True)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.output_width, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        special = {nn.Embedding: "shared", RelativeBias: "relative_attention_bias", Queries: "q_proj"}
        if isinstance(module, nn.Linear | Router | nn.Embedding | RelativeBias):
            leaf, fan_in = special.get(type(module), ""), module.weight.shape[1]
            init.normal_(module.weight, 0.0, t5_std(leaf, fan_in, self.config.hidden_size, self.config.head_dim))
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Stream | Strided):
            module.reset()
        if isinstance(module, Router) and module.expert_bias is not None:
            init.zeros_(module.expert_bias)
        if isinstance(module, Router) and module.expert_load is not None:
            init.constant_(module.expert_load, 1 / self.config.num_experts)

    def get_encoder(self, modality: str | None = None) -> Any:
        """What computes the encoder's output of tokens."""
        return Encoding(self)

    def get_input_embeddings(self) -> nn.Module:
        """The one table of both stacks."""
        return self.shared

    def _logits(self, features: Tensor) -> Tensor:
        if self.lm_head is not None:
            return self.lm_head(features)
        # T5's embeddings have unit variance: tied, they would make logits of the root of the width.
        return F.linear(features * features.shape[-1] ** -0.5, self.shared.weight)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[Tensor] | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache: EncoderDecoderCache | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits [B, S, V] and, with labels (as they are, -100 ignored), the mean cross-entropy in nats.

        Without `decoder_input_ids` the labels, moved right behind the start token, are the decoder's input. Dropless,
        as the decoder-only model's `forward` is.
        """
        if encoder_outputs is None:
            assert input_ids is not None
            encoder_outputs = self.get_encoder()(input_ids, attention_mask)
        context = encoder_outputs[0]
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        cache = given_cache(past_key_values, cache)
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))
        embedded = self.shared(decoder_input_ids)
        features, _ = self.decoder(embedded, decoder_attention_mask, context, attention_mask, cache)
        logits = self._logits(features)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=context, **{CACHE: cache})

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels [B, S] moved right by one, behind the start token; -100 becomes padding."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        moved = labels.roll(1, dims=-1)
        moved[:, 0] = start
        return moved.masked_fill(moved == -100, start if pad is None else pad)

    def losses(
        self,
        encoder_tokens_BS: Tensor,
        encoder_mask_BS: Tensor,
        tokens_BS: Tensor,
        targets_BS: Tensor,
        loss_mask_BS: Tensor | None = None,
        padding_BS: Tensor | None = None,
    ) -> Losses:
        """What one micro-batch is trained on, capacity included.

        Args:
            encoder_mask_BS: 1 on tokens, 0 on padding, which neither attention nor experts see.
            tokens_BS: the decoder's input, which begins with the start token; targets_BS: what follows each.
            loss_mask_BS: weight of each target; None counts all. padding_BS: the decoder's, bool, True on padding.
        Returns:
            Counts and drops by layer: the encoder's from 0, then the decoder's.
        """
        factor, layers = self.config.moe_capacity_factor, self.config.num_hidden_layers
        read = RoutingInput(factor, encoder_mask_BS == 0)
        context, encoded = self.encoder(self.shared(encoder_tokens_BS), encoder_mask_BS, given=read)
        embedded = self.shared(tokens_BS)
        features, decoded = self.decoder(
            embedded, None, context, encoder_mask_BS, None, RoutingInput(factor, padding_BS)
        )
        routings = encoded | {layers + n: routing for n, routing in decoded.items()}
        logits = full(self._logits(features))
        nats_BS = F.cross_entropy(logits.flatten(0, 1), targets_BS.flatten(), reduction="none").view_as(targets_BS)
        return Losses.of(nats_BS, loss_mask_BS, routings)

    @torch.no_grad()
    def step_taken(self, counts_per_layer: Mapping[int, Tensor]) -> None:
        """After an optimizer step: routers' biases and loads follow (`Router.step_taken`). Layers as in `losses`."""
        layers = [*self.encoder.layers, *self.decoder.layers]
        for n, counts_E in counts_per_layer.items():
            layers[n].mlp.router.step_taken(counts_E, self.config.moe_expert_bias_update_rate)


AutoModelForSeq2SeqLM.register(AltUpMoET5Config, AltUpMoEForConditionalGeneration, exist_ok=True)
