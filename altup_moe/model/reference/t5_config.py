"""The encoder-decoder's shape as a `transformers` configuration, beside `config.py`."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from altup_moe.altup.shape import context_width
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.sequence import layer_range
from altup_moe.model.reference.config import AltUpMoEConfig


class AltUpMoET5Config(AltUpMoEConfig):
    """The fields of `AltUpMoEConfig`, of which `num_hidden_layers` counts the encoder's layers, and T5's own.

    Raises:
        ConfigError: as `AltUpMoEConfig` does, or fewer key/value heads than query heads.
    """

    model_type = "altup_moe_t5"

    rms_norm_eps: float = 1e-6
    hidden_act: str = "gelu_new"
    is_encoder_decoder: bool = True
    # By this name `transformers` sizes the decoder's caches.
    decoder_layers: int = 0  # becomes num_hidden_layers
    decoder_start_token_id: int | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    altup_cross_attention: str = "narrow"
    # `sequence_layers` counts the encoder's.
    sequence_decoder_layers: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.decoder_layers = self.decoder_layers or self.num_hidden_layers
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.pad_token_id
        if self.num_key_value_heads != self.num_attention_heads:
            raise ConfigError("num_key_value_heads", self.num_key_value_heads, f"{self.num_attention_heads} would fit")
        if self.sequence_decoder_layers is not None:
            layer_range(self.sequence_decoder_layers, self.decoder_layers, "sequence_decoder_layers")

    @property
    def context_width(self) -> int:
        """Features of the encoder's output."""
        return context_width(self.hidden_size, self.altup_width, self.altup_variant, self.altup_cross_attention)

    def decoder_strides(self, layer: int) -> bool:
        """Whether the decoder's layer `layer` (from 0) runs on every sequence_stride-th token."""
        chosen = self.sequence_decoder_layers
        return self.sequence_stride > 1 and chosen is not None and layer in layer_range(chosen, self.decoder_layers)

    @classmethod
    def from_run(cls, config: RunConfig, **special_tokens: int | None) -> AltUpMoET5Config:
        """The model of a run of arch t5; see `AltUpMoEConfig.from_run`."""
        model = config.model
        fields: dict[str, Any] = {
            "decoder_layers": model.decoder_layers,
            "relative_attention_num_buckets": model.relative_attention_num_buckets,
            "relative_attention_max_distance": model.relative_attention_max_distance,
            "altup_cross_attention": config.altup.cross_attention,
            "sequence_decoder_layers": config.sequence.decoder_layers,
        }
        return super().from_run(config, **fields, **special_tokens)


AutoConfig.register(AltUpMoET5Config.model_type, AltUpMoET5Config, exist_ok=True)
