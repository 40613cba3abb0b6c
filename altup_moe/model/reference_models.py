"""The reference model of a run, whichever its architecture."""

from __future__ import annotations

from altup_moe.config import RunConfig
from altup_moe.model.reference import AltUpMoEForCausalLM
from altup_moe.model.reference_config import AltUpMoEConfig
from altup_moe.model.reference_t5 import AltUpMoEForConditionalGeneration
from altup_moe.model.reference_t5_config import AltUpMoET5Config

ReferenceModel = AltUpMoEForCausalLM | AltUpMoEForConditionalGeneration


def reference_config(config: RunConfig, **special_tokens: int | None) -> AltUpMoEConfig:
    """The model's `transformers` configuration. ``special_tokens``: see `AltUpMoEConfig.from_run`."""
    kind = AltUpMoET5Config if config.model.arch == "t5" else AltUpMoEConfig
    return kind.from_run(config, **special_tokens)


def reference_model(config: RunConfig, **special_tokens: int | None) -> ReferenceModel:
    """The model, with random weights of its own."""
    shape = reference_config(config, **special_tokens)
    if isinstance(shape, AltUpMoET5Config):
        return AltUpMoEForConditionalGeneration(shape)
    return AltUpMoEForCausalLM(shape)
