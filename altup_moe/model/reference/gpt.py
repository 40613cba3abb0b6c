"""The whole model in plain PyTorch: one process, no Megatron, written to be read beside the papers.

It is what every parallel layout is compared with, what generates text, and the format that leaves through
`save_pretrained`. Importing this module teaches `AutoConfig` and `AutoModelForCausalLM` the type `altup_moe`.

Shape legend: B samples, S positions, D width of a layer, K blocks of the stream, E experts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from altup_moe.altup.shape import BRANCHES
from altup_moe.model.reference.cache_name import CACHE, CACHE_NAMES, given_cache
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.layers import (
    DROPLESS,
    Attention,
    GatedMLP,
    MoE,
    ResidualOutput,
    RMSNorm,
    Router,
    Routing,
    RoutingInput,
    attention_mask,
    full,
)
from altup_moe.model.reference.sequence import Anchors, Strided, token_order
from altup_moe.model.reference.streams import BlockProjection, Stream, projections, stream_around
from altup_moe.model.reference.token_streams import HEADS, Head


class Layer(nn.Module):
    """A pre-norm Transformer layer on one block, and the stream around it."""

    def __init__(self, config: AltUpMoEConfig, layer: int) -> None:
        super().__init__()
        d, eps = config.hidden_size, config.rms_norm_eps
        self.dropout = config.hidden_dropout
        self.input_layernorm = RMSNorm(d, eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(d, eps)
        dense = not config.is_moe_layer(layer)
        self.mlp = GatedMLP(d, config.intermediate_size, config.hidden_act) if dense else MoE(config)
        self.by_branch = config.has_steps and config.altup_level == "branch"
        self.altup: Any = stream_around(config, layer) if config.has_steps and not self.by_branch else None
        if self.by_branch:
            self.altup = nn.ModuleDict({name: stream_around(config, layer, name) for name in BRANCHES})
        self.sequence = Strided(config, layer) if config.is_strided(layer) else None

    def compute(
        self, x_BSD: Tensor, given: RoutingInput, *attention: Any, order_BS: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """y = F(x) on all tokens, or by way of the anchors; `order_BS` as `Strided` takes it."""
        if self.sequence is None:
            return self.transform(x_BSD, given, *attention)
        positions_BS, _, cache = attention

        def run(u_BAD: Tensor, where: Anchors) -> tuple[Tensor, Routing | None]:
            return self.transform(u_BAD, given.at(where.positions_BA), where.positions_BA, where.visible, cache)

        return self.sequence(x_BSD, run, positions_BS, cache, order_BS)

    def attention(self, x_BSD: Tensor, *attention: Any) -> Tensor:
        """Attention without its residual."""
        branch = self.self_attn(self.input_layernorm(x_BSD), *attention)
        return F.dropout(branch, self.dropout, self.training)

    def attend(self, x_BSD: Tensor, *attention: Any) -> Tensor:
        """Attention and its residual."""
        return x_BSD + self.attention(x_BSD, *attention)

    def feed_forward(self, x_BSD: Tensor, given: RoutingInput) -> tuple[Tensor, Routing | None]:
        """MLP or experts without their residual."""
        normed, routing = self.post_attention_layernorm(x_BSD), None
        if isinstance(self.mlp, MoE):
            branch, routing = self.mlp(normed, given)
        else:
            branch = self.mlp(normed)
        return F.dropout(branch, self.dropout, self.training), routing

    def transform(self, x_BSD: Tensor, given: RoutingInput, *attention: Any) -> tuple[Tensor, Routing | None]:
        """The Transformer layer, residuals included."""
        h_BSD = self.attend(x_BSD, *attention)
        branch, routing = self.feed_forward(h_BSD, given)
        return h_BSD + branch, routing

    def around_branches(self, x_KBSD: Tensor, given: RoutingInput, *attention: Any) -> tuple[Tensor, Routing | None]:
        """The next layer's stream where attention and feed-forward each read and write it."""
        routing = None
        for name, stream in self.altup.items():
            u_BSD, kept_KBSD = stream.before(x_KBSD)
            if name == "mlp":
                y_BSD, routing = self.feed_forward(u_BSD, given)
            else:
                y_BSD = self.attention(u_BSD, *attention)
            x_KBSD = stream.after(kept_KBSD, u_BSD + y_BSD if stream.with_residual else y_BSD)
        return x_KBSD, routing

    def forward(
        self, x_KBSD: Tensor, given: RoutingInput, *attention: Any, **order: Any
    ) -> tuple[Tensor, Routing | None]:
        if self.by_branch:
            return self.around_branches(x_KBSD, given, *attention)
        if self.altup is None:
            y_BSD, routing = self.compute(x_KBSD[0], given, *attention, **order)
            return y_BSD[None], routing
        u_BSD, predicted_KBSD = self.altup.before(x_KBSD)
        y_BSD, routing = self.compute(u_BSD, given, *attention, **order)
        return self.altup.after(predicted_KBSD, y_BSD), routing


def walk(layers: nn.ModuleList, x_KBSD: Tensor, *args: Any, **order: Any) -> tuple[Tensor, dict[int, Routing]]:
    """The stream after all layers, and what each MoE layer decided. ``args``: what a layer takes beside the stream."""
    routings = {}
    for n, layer in enumerate(layers):
        x_KBSD, routing = layer(x_KBSD, *args, **order)
        if routing is not None:
            routings[n] = routing
    return x_KBSD, routings


def sum_or_concatenate(x_KBSD: Tensor, summed: bool) -> Tensor:
    """[K, B, S, D] -> the blocks summed [B, S, D], or side by side [B, S, K*D]."""
    return x_KBSD.sum(0) if summed else torch.cat(tuple(x_KBSD), dim=-1)


class Decoder(nn.Module):
    """Embedding, widened stream, layers, narrowing and the final norm."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width)
        self.layers = nn.ModuleList(Layer(config, n) for n in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.output_width, config.rms_norm_eps)
        self.altup_head: Any = None
        if config.has_head:
            self.altup_head = HEADS[config.altup_variant](config)
        if config.has_projections:
            self.altup_projections = projections(config.hidden_size, config.altup_width)
            self.altup_unembed_projections = projections(config.hidden_size, config.altup_width)

    def widen(self, embedded: Tensor) -> Tensor:
        """Embedding rows to the stream [K, B, S, D].

        Recycled: K copies of a narrow row. Else block k is features [k*D : (k+1)*D]. `sum`: these added up, K = 1.
        `dynamic`: the row and its K - 1 projections, all of one magnitude.
        """
        d, k = self.config.hidden_size, self.config.stream_width
        if not self.config.row.blocks:
            return embedded.unflatten(-1, (-1, d)).sum(-2)[None]
        if self.config.has_projections:
            return torch.stack([embedded, *(project(embedded, embedded) for project in self.altup_projections)])
        if self.config.altup_recycled:
            x_KBSD = embedded.expand(k, *embedded.shape)
        else:
            x_KBSD = torch.stack(embedded.split(d, dim=-1))
        if self.config.reads_before_write:
            return torch.cat([x_KBSD, torch.zeros_like(x_KBSD)])
        # Where a step computes the next one's read, the first reads block 0 (DeepSeek-V4.1).
        return torch.cat([x_KBSD, x_KBSD[:1]]) if self.config.is_lagged else x_KBSD

    def narrow(self, x_KBSD: Tensor) -> Tensor:
        """[K, B, S, D] -> the blocks summed [B, S, D] (recycled), or side by side [B, S, K*D].

        `dynamic`: the mean of block 0 and the others' projections, all of one magnitude.
        """
        if self.config.has_projections:
            others = zip(self.altup_unembed_projections, x_KBSD[1:], strict=True)
            return torch.stack([x_KBSD[0], *(project(x, x_KBSD[0]) for project, x in others)]).mean(0)
        if self.config.reads_before_write:
            seen_KBSD, written_KBSD = full(x_KBSD).chunk(2)
            x_KBSD = (seen_KBSD + written_KBSD).to(x_KBSD.dtype)
        if self.altup_head is not None:
            return self.altup_head(x_KBSD)
        if self.config.is_lagged:
            blocks = x_KBSD[: self.config.stream_width]
            return x_KBSD[-1] if self.config.altup_recycled else sum_or_concatenate(blocks, False)
        return sum_or_concatenate(x_KBSD, self.config.altup_recycled)

    def forward(
        self,
        tokens_BS: Tensor,
        padding: Tensor | None = None,
        positions_BS: Tensor | None = None,
        cache: DynamicCache | None = None,
        given: RoutingInput = DROPLESS,
    ) -> tuple[Tensor, dict[int, Routing]]:
        """Features for the output layer [B, S, D or K*D], and what each MoE layer decided.

        Args:
            padding: [B, past + S], 1 on tokens and 0 on padding; positions then count tokens only.
            given: what MoE layers are told.
        """
        s, past = tokens_BS.shape[1], 0 if cache is None else cache.get_seq_length()
        if positions_BS is None and padding is not None:
            positions_BS = (padding.long().cumsum(-1) - 1).clamp(min=0)[:, -s:]
        elif positions_BS is None:
            positions_BS = torch.arange(past, past + s, device=tokens_BS.device)[None]
        mask = attention_mask(padding, s, past, tokens_BS.device)
        order_BS = token_order(padding, s, past, tokens_BS.device) if self.config.sequence_stride > 1 else None
        x_KBSD = self.widen(self.embed_tokens(tokens_BS))
        x_KBSD, routings = walk(self.layers, x_KBSD, given, positions_BS, mask, cache, order_BS=order_BS)
        return self.norm(self.narrow(x_KBSD)), routings


class Losses(NamedTuple):
    """Training losses of one micro-batch. A step is trained on those of all its micro-batches (`share`).

    ``lm_sum``: summed cross-entropy in nats; ``num_tokens``: labels it was summed over (scalars).
    ``routings``: layer -> what its experts' router decided.
    """

    lm_sum: Tensor
    num_tokens: Tensor
    routings: Mapping[int, Routing]

    @classmethod
    def of(cls, nats_BS: Tensor, loss_mask_BS: Tensor | None, routings: Mapping[int, Routing]) -> Losses:
        """From every target's cross-entropy, its weight (None counts all), and what each MoE layer decided."""
        mask_BS = torch.ones_like(nats_BS) if loss_mask_BS is None else loss_mask_BS.to(nats_BS.dtype)
        return cls((nats_BS * mask_BS).sum(), mask_BS.sum(), routings)

    @property
    def counts(self) -> dict[int, Tensor]:
        """Layer -> int64 [E], tokens routed to each expert before dropping."""
        return {layer: routing.counts_E for layer, routing in self.routings.items()}

    @property
    def dropped(self) -> dict[int, int]:
        """Layer -> routes lost."""
        return {layer: routing.dropped for layer, routing in self.routings.items()}

    def share(self, step: StepTotals) -> Tensor:
        """This micro-batch's part of what an optimizer step minimises; the parts of all of them add up to it."""
        routers = [r.share(step.tokens[layer], step.micro_batches) for layer, r in self.routings.items()]
        return self.lm_sum / max(step.labels, 1.0) + sum(routers)


class StepTotals(NamedTuple):
    """What the losses of an optimizer step are divided by.

    Cross-entropy by the labels of the whole step, so that it does not matter which micro-batch, or rank, holds a label;
    the z-loss by the tokens that a layer routes in it. A balance loss of micro-batches' own loads is their mean.
    """

    labels: float
    micro_batches: int
    tokens: Mapping[int, int]

    @classmethod
    def of(cls, micro_batches: Sequence[Losses]) -> StepTotals:
        """Those of all micro-batches of a step."""
        layers = micro_batches[0].routings
        tokens = {layer: sum(losses.routings[layer].tokens for losses in micro_batches) for layer in layers}
        return cls(sum(float(losses.num_tokens) for losses in micro_batches), len(micro_batches), tokens)


def step_loss(micro_batches: Sequence[Losses]) -> Tensor:
    """What an optimizer step minimises."""
    totals = StepTotals.of(micro_batches)
    return torch.stack([losses.share(totals) for losses in micro_batches]).sum()


class AltUpMoEForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model. Parameter names are the project's global names; a tied model has no `lm_head.weight`."""

    config_class = AltUpMoEConfig
    base_model_prefix = "model"
    _no_split_modules = ("Layer",)
    _skip_keys_device_placement = CACHE_NAMES
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = (r"\.altup\.", "altup_head", "sequence", "expert_bias", "expert_load")

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else nn.Linear(config.output_width, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, ResidualOutput):
            std /= math.sqrt(2 * self.config.num_hidden_layers)
        if isinstance(module, BlockProjection):
            module.reset(std)
        elif isinstance(module, nn.Linear | nn.Embedding | Router):
            init.normal_(module.weight, 0.0, std)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Stream | Strided | Head):
            module.reset()
        if isinstance(module, Router) and module.expert_bias is not None:
            init.zeros_(module.expert_bias)
        if isinstance(module, Router) and module.expert_load is not None:
            init.constant_(module.expert_load, 1 / self.config.num_experts)

    def _logits(self, features: Tensor) -> Tensor:
        table = self.model.embed_tokens if self.lm_head is None else self.lm_head
        return F.linear(features, table.weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        cache: DynamicCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V] and, with labels (shifted here, -100 ignored), the mean cross-entropy in nats.

        Dropless: a capacity would let later tokens decide an earlier one's logits, and depend on what is cached.
        Capacity belongs to training micro-batches; see `losses`. `cache` is the newer name of `past_key_values`; the
        output has the one that the installed transformers uses.
        """
        cache = given_cache(past_key_values, cache)
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        features, _ = self.model(input_ids, attention_mask, position_ids, cache)
        logits = self._logits(features[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})

    def losses(
        self,
        tokens_BS: Tensor,
        targets_BS: Tensor,
        loss_mask_BS: Tensor | None = None,
        padding_BS: Tensor | None = None,
    ) -> Losses:
        """What one micro-batch is trained on, capacity included.

        Args:
            targets_BS: the next token of each, already shifted (as Megatron's `GPTDataset` gives them).
            loss_mask_BS: weight of each position, 0 or 1; None counts all.
            padding_BS: bool, True on padding, which ends rows and is not routed; None has none.
        """
        given = RoutingInput(self.config.moe_capacity_factor, padding_BS)
        features, routings = self.model(tokens_BS, given=given)
        logits = full(self._logits(features))
        nats_BS = F.cross_entropy(logits.flatten(0, 1), targets_BS.flatten(), reduction="none").view_as(targets_BS)
        return Losses.of(nats_BS, loss_mask_BS, routings)

    @torch.no_grad()
    def step_taken(self, counts_per_layer: Mapping[int, Tensor]) -> None:
        """After an optimizer step: routers' biases and loads follow (`Router.step_taken`). Layer -> counts [E]."""
        for n, counts_E in counts_per_layer.items():
            layer: Any = self.model.layers[n]
            layer.mlp.router.step_taken(counts_E, self.config.moe_expert_bias_update_rate)


AutoModelForCausalLM.register(AltUpMoEConfig, AltUpMoEForCausalLM, exist_ok=True)
