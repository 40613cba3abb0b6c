"""The reference model of a run, whichever its architecture."""

from __future__ import annotations

from altup_moe.altup.lazy import load_object
from altup_moe.config import RunConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.model.reference.t5 import AltUpMoEForConditionalGeneration

ReferenceModel = AltUpMoEForCausalLM | AltUpMoEForConditionalGeneration


def class_of(config: RunConfig) -> type[ReferenceModel]:
    """The model's class."""
    return load_object(config.model.architecture.reference)


def reference_config(config: RunConfig, **special_tokens: int | None) -> AltUpMoEConfig:
    """The model's `transformers` configuration. ``special_tokens``: see `AltUpMoEConfig.from_run`."""
    return class_of(config).config_class.from_run(config, **special_tokens)


def reference_model(config: RunConfig, **special_tokens: int | None) -> ReferenceModel:
    """The model, with random weights of its own."""
    return class_of(config)(reference_config(config, **special_tokens))
