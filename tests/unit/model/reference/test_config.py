"""The reference model's configuration: every field of a run's model, and shapes that cannot be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from altup_moe.config import AltUpConfig, ConfigError, ModelConfig, MoEConfig, RunConfig, SequenceConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.streams import DynamicAltUp, HyperConnections, PredictCorrect, RoundRobin
from tests.unit.model.reference.test_gpt import TINY

T5_ALONE = ("gpt", 32, 128, "narrow")
"""What only an encoder-decoder's configuration holds."""


def test_from_run_carries_every_field() -> None:
    run = RunConfig(
        ModelConfig(3, 48, 80, 6, 2, 40, 99, False, 777, 1e-4, 0.03, 0.1, 0.2, 18, True, 4.5),
        AltUpConfig(4, "gemma", "same", False, coef_clip=0.7),
        MoEConfig(6, 3, 1, 56, 1.5, "sigmoid", 0.04, "global_aux_loss", 0.05, 0.06, 24, "allgather", alarm_steps=11),
        sequence=SequenceConfig(4, "0..1", "average_pool"),
    )
    config = AltUpMoEConfig.from_run(run, eos_token_id=7)
    values = config.to_dict()
    ours = [v for section in (run.model, run.altup, run.moe, run.sequence) for v in dataclasses.astuple(section)]
    for value in ours:
        # How it is computed, by what collective or code, and when its router is reported is not part of the model.
        others = ("allgather", "auto", "megatron", run.moe.alarm_steps, *T5_ALONE)
        assert value in values.values() or value in others, value
    partial = dataclasses.replace(run, moe=dataclasses.replace(run.moe, shared_expert_size=0, partial=True))
    assert AltUpMoEConfig.from_run(partial).moe_shared_expert_size == 80
    assert config.eos_token_id == 7
    assert (config.moe_aux_loss_coeff, config.moe_z_loss_coeff) == (0.04, 0.05)
    assert (config.num_key_value_heads, config.moe_layer_freq, config.moe_shared_expert_size) == (2, 3, 24)
    assert config.embedding_width == config.output_width == 4 * 48
    assert (config.head_dim, config.use_qk_norm, config.rotary_scaling_factor) == (18, True, 4.5)
    assert AltUpMoEConfig.from_run(RunConfig()).head_dim == 256 // 8


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads=5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"altup_variant": "wide"}, "altup_variant='wide'"),
        ({"altup_variant": "dynamic", "altup_recycled": False}, "altup_recycled=False"),
        ({"altup_variant": "mhc", "altup_width": 4}, "altup_level='layer'"),
        ({"altup_variant": "sum", "altup_width": 2, "tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ],
)
def test_shapes_that_cannot_be(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        AltUpMoEConfig(**{**TINY, **fields})


def test_coefficient_modules_survive_a_device_less_cast() -> None:
    dynamic = DynamicAltUp(2, 0, 16, 1e-5, None, 0.02)
    for module in (PredictCorrect(2, 0, False), RoundRobin(2, 0), HyperConnections(2, 0), dynamic):
        module.reset()
        assert {p.dtype for p in module.bfloat16().parameters()} == {torch.float32}
        assert {p.dtype for p in module.double().parameters()} == {torch.float64}
