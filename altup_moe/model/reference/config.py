"""The model's shape as a `transformers` configuration: one flat record, the `config.json` beside the weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from altup_moe.altup.shape import has_head, has_projections, has_steps, step_of, stream_width
from altup_moe.altup.variants import VARIANTS, StreamVariant, selected_block, stream_row
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.sequence import layer_range


class AltUpMoEConfig(PretrainedConfig):
    """Flat fields, Hugging Face's names where it has one. `from_run` says which field of a `RunConfig` each one is.

    Raises:
        ConfigError: head counts that do not divide, an unknown variant, or tables that cannot be tied.
    """

    model_type = "altup_moe"
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    max_position_embeddings: int = 256
    rotary_base: int = 10000
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    tie_word_embeddings: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    hidden_act: str = "silu"
    head_dim: int = 0  # becomes hidden_size / num_attention_heads
    use_qk_norm: bool = False
    rotary_scaling_factor: float | None = None
    altup_width: int = 1
    altup_variant: str = "altup"
    altup_select: str = "alternating"
    altup_recycled: bool = True
    altup_coef_clip: float | None = None
    altup_level: str = "layer"
    altup_correct: str = "next"
    sequence_stride: int = 1
    sequence_layers: str = "1..-2"
    sequence_method: str = "altup"
    num_experts: int = 0
    moe_layer_freq: int = 1
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 352
    moe_shared_expert_size: int = 0
    moe_capacity_factor: float | None = None
    moe_score_function: str = "softmax"
    moe_aux_loss_coeff: float = 0.01
    moe_load_balancing_type: str = "aux_loss"
    moe_z_loss_coeff: float = 0.0
    moe_expert_bias_update_rate: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.head_dim and self.hidden_size % self.num_attention_heads:
            raise ConfigError("num_attention_heads", self.num_attention_heads, f"must divide {self.hidden_size}")
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads", self.num_key_value_heads, f"must divide {self.num_attention_heads}"
            )
        if self.altup_variant not in VARIANTS:
            raise ConfigError("altup_variant", self.altup_variant, f"one of {', '.join(VARIANTS)}")
        levels = VARIANTS[self.altup_variant].levels
        if self.stream_width > 1 and self.altup_level not in levels:
            raise ConfigError("altup_level", self.altup_level, f"one of {', '.join(levels)} with {self.altup_variant}")
        if self.altup_correct not in ("next", "delayed"):
            raise ConfigError("altup_correct", self.altup_correct, "one of next, delayed")
        if self.altup_correct == "delayed" and not (self.has_steps and self.row.delays):
            fits = f"next with altup_variant {self.altup_variant} and altup_width {self.altup_width}"
            raise ConfigError("altup_correct", self.altup_correct, fits)
        if VARIANTS[self.altup_variant].projections and not self.altup_recycled:
            fits = f"altup_variant {self.altup_variant} expands a narrow embedding; True"
            raise ConfigError("altup_recycled", False, fits)
        if self.sequence_method not in ("altup", "stride_and_skip", "average_pool"):
            fits = "one of altup, stride_and_skip, average_pool"
            raise ConfigError("sequence_method", self.sequence_method, fits)
        if self.sequence_stride > 1:
            layer_range(self.sequence_layers, self.num_hidden_layers, "sequence_layers")
        if self.tie_word_embeddings and self.embedding_width != self.output_width:
            fits = f"False: the embedding is {self.embedding_width} wide, the output {self.output_width}"
            raise ConfigError("tie_word_embeddings", True, fits)

    @property
    def stream_width(self) -> int:
        """Blocks K that travel through the layers; the control `sum` has one."""
        return stream_width(self.altup_width, self.altup_variant)

    @property
    def row(self) -> StreamVariant:
        """The stream's row of the table."""
        return stream_row(self.altup_variant, self.altup_width)

    @property
    def has_steps(self) -> bool:
        """Whether layers or branches are steps that read and write a stream."""
        return has_steps(self.altup_width, self.altup_variant, "delayed" if self.is_delayed else "next")

    @property
    def has_projections(self) -> bool:
        """Whether learned matrices stand at both ends of the stream."""
        return has_projections(self.altup_width, self.altup_variant)

    @property
    def is_lagged(self) -> bool:
        """Whether a step computes what the next one reads."""
        return self.row.lagged

    @property
    def is_delayed(self) -> bool:
        """Whether a step's output is first read by the step after the next one."""
        return self.altup_correct == "delayed"

    @property
    def reads_before_write(self) -> bool:
        """Whether a static stream is read before the last output is written to it, and not where none is written."""
        return self.is_delayed and self.row.reads_early("delayed") and not self.is_lagged

    @property
    def has_head(self) -> bool:
        """Whether learned parameters collapse the blocks at the end of the stream."""
        return has_head(self.altup_width, self.altup_variant, self.altup_recycled)

    @property
    def embedding_width(self) -> int:
        """Features of an embedding row; the control `sum` always has K blocks to sum."""
        narrow = self.altup_recycled and VARIANTS[self.altup_variant].blocks
        return self.hidden_size * (1 if narrow else self.altup_width)

    @property
    def output_width(self) -> int:
        """Features that the final norm and the output layer see."""
        return self.hidden_size * (1 if self.altup_recycled else self.stream_width)

    @property
    def balances_steps(self) -> bool:
        """Whether the balance loss sees the loads of whole optimizer steps."""
        return self.moe_aux_loss_coeff > 0 and self.moe_load_balancing_type == "global_aux_loss"

    def selected_block(self, layer: int, branch: str = "") -> int:
        """Block j that layer `layer` (from 0), or one of its branches, computes on."""
        return selected_block(step_of(layer, branch, self.altup_level), self.stream_width, self.altup_select)

    def is_strided(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) runs on every sequence_stride-th token."""
        return self.sequence_stride > 1 and layer in layer_range(self.sequence_layers, self.num_hidden_layers)

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) has experts: every n-th does, counted from 1."""
        return self.num_experts > 0 and (layer + 1) % self.moe_layer_freq == 0

    @classmethod
    def from_run(cls, config: RunConfig, **special_tokens: int | None) -> AltUpMoEConfig:
        """The model of a run.

        Args:
            special_tokens: the tokenizer's `pad_token_id`, `bos_token_id`, `eos_token_id`, which generation needs.
        """
        model, altup, moe = config.model, config.altup, config.moe
        return cls(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.ffn_hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_query_groups,
            max_position_embeddings=model.positions,
            rotary_base=model.rotary_base,
            rms_norm_eps=model.layernorm_epsilon,
            initializer_range=model.init_method_std,
            attention_dropout=model.attention_dropout,
            hidden_dropout=model.hidden_dropout,
            hidden_act=model.activation,
            head_dim=model.head_dim,
            use_qk_norm=model.qk_layernorm,
            rotary_scaling_factor=model.rotary_scaling_factor,
            tie_word_embeddings=model.share_embeddings_and_output_weights,
            altup_width=altup.width,
            altup_variant=altup.variant,
            altup_select=altup.select,
            altup_level=altup.level,
            altup_correct=altup.correct,
            altup_recycled=altup.recycled,
            altup_coef_clip=altup.coef_clip,
            sequence_stride=config.sequence.stride,
            sequence_layers=config.sequence.layers,
            sequence_method=config.sequence.method,
            num_experts=moe.num_experts,
            moe_layer_freq=moe.layer_freq,
            num_experts_per_tok=moe.top_k,
            moe_intermediate_size=moe.ffn_hidden_size,
            moe_shared_expert_size=config.shared_expert_size,
            moe_capacity_factor=moe.capacity_factor,
            moe_score_function=moe.score_function,
            moe_aux_loss_coeff=moe.aux_loss_coeff,
            moe_load_balancing_type=moe.load_balancing_type,
            moe_z_loss_coeff=moe.z_loss_coeff,
            moe_expert_bias_update_rate=moe.expert_bias_update_rate,
            **special_tokens,
        )


AutoConfig.register(AltUpMoEConfig.model_type, AltUpMoEConfig, exist_ok=True)
