"""The plain PyTorch encoder-decoder: against transformers' T5 and Switch, against itself with a cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from altup_moe.checkpoint.hf.names import hub_name
from altup_moe.config import AltUpConfig, ConfigError, ModelConfig, MoEConfig, RunConfig
from altup_moe.model.reference.cache_name import CACHE
from altup_moe.model.reference.layers import MoE
from altup_moe.model.reference.t5 import AltUpMoEForConditionalGeneration
from altup_moe.model.reference.t5_config import AltUpMoET5Config
from tests.models import assert_same_model
from tests.unit.model.reference.test_gpt import TINY

T5: dict[str, Any] = {
    **{k: v for k, v in TINY.items() if k not in ("initializer_range", "num_key_value_heads")},
    "num_key_value_heads": 4, "head_dim": 12, "decoder_layers": 2, "tie_word_embeddings": False,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "pad_token_id": 0, "eos_token_id": 60,
}  # fmt: skip
STREAMS: list[dict[str, Any]] = [
    {"altup_width": 1},
    {"altup_width": 2, "altup_cross_attention": "wide"},
    {"altup_width": 4, "altup_recycled": False},
    {"altup_width": 2, "altup_variant": "round_robin", "altup_recycled": False, "altup_cross_attention": "wide"},
    {"altup_width": 2, "altup_variant": "sum", "altup_recycled": False, "altup_cross_attention": "wide"},
]
EXPERTS: dict[str, Any] = {"num_experts": 4, "moe_layer_freq": 2}


def build(dtype: torch.dtype = torch.float32, **fields: Any) -> AltUpMoEForConditionalGeneration:
    """A tiny model with norms, coefficients and biases that count."""
    torch.manual_seed(0)
    model = AltUpMoEForConditionalGeneration(AltUpMoET5Config(**{**T5, **fields})).eval()
    for name, p in model.named_parameters():
        if ".altup." in name or "norm" in name or "bias" in name:
            p.data.add_(0.3 * torch.randn_like(p))
    return model.to(dtype)


def sample(seed: int = 1) -> dict[str, Tensor]:
    """Encoder tokens of two samples, the second one with padding at its end, and labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(2, 21, dtype=torch.long)
    mask[1, 15:] = 0
    tokens = torch.randint(1, 60, (2, 21), generator=generator) * mask
    labels = torch.randint(1, 60, (2, 17), generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def theirs(cls: Any, config: Any) -> Any:
    """A model of transformers with one table for both stacks and an output layer of its own.

    By the same flag 5.23 ties all of T5's tables, or none of Switch's.
    """
    torch.manual_seed(2)
    model = cls(config).eval()
    model.set_input_embeddings(model.shared)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * config.d_model**-0.5)
    return model


def assert_same(ours: Any, other: Any, names: dict[str, str]) -> None:
    """Logits, loss and every gradient, after `other`'s weights are copied by name."""
    held = dict(other.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.copy_(held[names[name]])
    got, expected = ours(**sample()), other(**sample())
    torch.testing.assert_close(got.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-5)
    got.loss.backward()
    expected.loss.backward()
    assert set(names.values()) == set(held)
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - held[names[name]].grad).norm() / held[names[name]].grad.norm()
        assert difference < 1e-5, name


@pytest.mark.parametrize("tied", [False, True])
def test_t5_is_the_plain_dense_model(tied: bool) -> None:
    config = T5Config(
        vocab_size=61, d_model=32, d_kv=12, d_ff=48, num_layers=3, num_decoder_layers=2, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=12, feed_forward_proj="gated-gelu",
        tie_word_embeddings=tied, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    ours, t5 = build(tie_word_embeddings=tied), theirs(T5ForConditionalGeneration, config)
    if tied:
        t5.tie_weights()
    assert_same(ours, t5, {name: hub_name(name, "t5") for name, _ in ours.named_parameters()})


def test_switch_is_the_plain_model_of_top1_experts() -> None:
    """Switch's feed-forwards have no gate; with ours in their places all else is the same: who gets which token, with
    what weight, and which layers have experts."""
    config = SwitchTransformersConfig(
        vocab_size=61, d_model=32, d_kv=12, d_ff=48, num_layers=4, num_decoder_layers=2, num_heads=4,
        num_sparse_encoder_layers=2, num_sparse_decoder_layers=1, num_experts=4, expert_capacity=1000,
        router_jitter_noise=0.0, relative_attention_num_buckets=8, relative_attention_max_distance=12,
        decoder_start_token_id=0, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    fields = {"num_hidden_layers": 4, "moe_intermediate_size": 48, "num_experts_per_tok": 1}
    ours, switch = build(**EXPERTS, **fields), theirs(SwitchTransformersForConditionalGeneration, config)
    names = {name: hub_name(name, "t5") for name, _ in ours.named_parameters() if ".mlp." not in name}
    for stack in ("encoder", "decoder"):
        for n, (layer, block) in enumerate(zip(getattr(ours, stack).layers, getattr(switch, stack).block, strict=True)):
            assert isinstance(layer.mlp, MoE) == block.layer[-1].is_sparse
            prefix, other = f"{stack}.layers.{n}.mlp", f"{stack}.block.{n}.layer.{1 if stack == 'encoder' else 2}.mlp"
            if isinstance(layer.mlp, MoE):
                names[f"{prefix}.router.weight"] = f"{other}.router.classifier.weight"
                for e, expert in enumerate(layer.mlp.experts):
                    block.layer[-1].mlp.experts[f"expert_{e}"] = gated_copy(expert)
                    for part in ("gate", "up", "down"):
                        names[f"{prefix}.experts.{e}.{part}_proj.weight"] = (
                            f"{other}.experts.expert_{e}.{part}_proj.weight"
                        )
            else:
                block.layer[-1].mlp = gated_copy(layer.mlp)
                names |= {
                    f"{prefix}.{part}_proj.weight": f"{other}.{part}_proj.weight" for part in ("gate", "up", "down")
                }
    assert_same(ours, switch, names)


def gated_copy(mlp: nn.Module) -> nn.Module:
    """The same function with weights of its own."""
    copied = type(mlp)(mlp.gate_proj.in_features, mlp.gate_proj.out_features, "gelu_new")
    copied.load_state_dict(mlp.state_dict())
    return copied


@pytest.mark.parametrize("fields", STREAMS)
def test_generation_with_a_cache_is_generation_without(fields: dict[str, Any]) -> None:
    model, given = build(**EXPERTS, **fields), sample()
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    common = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    greedy = model.generate(**inputs, **common, use_cache=True)
    assert greedy.shape == (2, 13)
    assert len(set(greedy[0].tolist())) > 2
    assert torch.equal(greedy, model.generate(**inputs, **common, use_cache=False))
    beams = [model.generate(**inputs, **common, num_beams=3, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*beams)
    assert torch.equal(greedy, model.generate(**inputs, **common, num_beams=1))
    ids = torch.zeros(2, 1, dtype=torch.long)
    for _ in range(12):
        logits = model(**inputs, decoder_input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(greedy, ids)


@pytest.mark.parametrize("fields", STREAMS)
def test_padding_is_not_seen(fields: dict[str, Any]) -> None:
    """Cut off or filled with anything, the padded part changes nothing."""
    model, given = build(dtype=torch.float64, **EXPERTS, **fields), sample()
    whole = model(**given).logits[1]
    cut = {name: value[1:, :15] if name != "labels" else value[1:] for name, value in given.items()}
    torch.testing.assert_close(whole, model(**cut).logits[0], rtol=1e-10, atol=1e-10)
    given["input_ids"][1, 15:] = 7
    torch.testing.assert_close(whole, model(**given).logits[1], rtol=1e-10, atol=1e-10)


def test_a_sample_of_padding_alone_is_finite() -> None:
    model, given = build(), sample()
    given["attention_mask"][1] = 0
    assert model(**given).logits.isfinite().all()


def test_losses_are_the_forwards() -> None:
    """With the decoder's input and labels as data gives them; layers of the decoder are counted after the encoder's."""
    model, given = build(**EXPERTS, altup_width=2), sample()
    decoder_input = model.prepare_decoder_input_ids_from_labels(given["labels"])
    assert decoder_input[:, 0].tolist() == [0, 0]
    assert torch.equal(decoder_input[:, 1:], given["labels"][:, :-1])
    losses = model.losses(given["input_ids"], given["attention_mask"].float(), decoder_input, given["labels"])
    torch.testing.assert_close(losses.lm_sum / losses.num_tokens, model(**given).loss)
    assert {n: int(counts.sum()) for n, counts in losses.counts.items()} == {
        1: 2 * int(given["attention_mask"].sum()),  # no padding
        4: 2 * 2 * 17,
    }


def test_recycled_starts_as_the_plain_model() -> None:
    # The sum's norm sees K times the features: equal up to its epsilon.
    plain = build(rms_norm_eps=1e-12)
    wide = AltUpMoEForConditionalGeneration(AltUpMoET5Config(**T5, altup_width=4, rms_norm_eps=1e-12)).eval()
    missing, unexpected = wide.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".altup." in name for name in missing)
    torch.testing.assert_close(wide(**sample()).loss, plain(**sample()).loss, rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_by_the_auto_classes(tmp_path: Path) -> None:
    model = build(**EXPERTS, altup_width=2, altup_cross_attention="wide")
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AltUpMoET5Config)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert_same_model(loaded, model, lambda of: of(**sample()).logits)


def test_initial_weights_are_t5s() -> None:
    """The same deviations as transformers draws, but for the output layer, which its unit variance would blow up."""
    torch.manual_seed(0)
    shape = {**T5, "vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    ours = AltUpMoEForConditionalGeneration(AltUpMoET5Config(**shape))
    config = T5Config(
        vocab_size=500, d_model=64, d_kv=16, d_ff=96, num_layers=3, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    held = dict(T5ForConditionalGeneration(config).named_parameters(remove_duplicate=False))
    for name, parameter in ours.named_parameters():
        std, other = parameter.std(), held[hub_name(name, "t5")].std()
        if name == "lm_head.weight":
            torch.testing.assert_close(std, torch.tensor(64**-0.5), rtol=0.05, atol=0)
        elif "bias" in name:  # few values
            torch.testing.assert_close(std, other, rtol=0.6, atol=0)
        elif "norm" not in name:
            torch.testing.assert_close(std, other, rtol=0.1, atol=0)
    batch = sample()
    assert ours(**batch).loss < 12


def test_heads_of_keys_are_the_queries() -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        AltUpMoET5Config(**{**T5, "num_key_value_heads": 2})


def test_from_run_carries_every_field() -> None:
    model = ModelConfig(
        5, 48, 80, 6, 6, 40, 99, False, kv_channels=18, arch="t5", num_decoder_layers=3,
        relative_attention_num_buckets=14, relative_attention_max_distance=77,
    )  # fmt: skip
    run = RunConfig(model, AltUpConfig(4, "gemma", "same", False, cross_attention="wide"), MoEConfig(8, 1))
    config = AltUpMoET5Config.from_run(run, pad_token_id=3)
    assert (config.num_hidden_layers, config.decoder_layers, config.head_dim) == (5, 3, 18)
    assert (config.relative_attention_num_buckets, config.relative_attention_max_distance) == (14, 77)
    assert (config.hidden_act, config.context_width, config.output_width) == ("gelu_new", 4 * 48, 4 * 48)
    assert (config.decoder_start_token_id, config.tie_word_embeddings, config.num_experts) == (3, False, 8)
    assert AltUpMoET5Config.from_run(replace(run, model=replace(model, num_decoder_layers=None))).decoder_layers == 5


def test_a_cache_is_taken_under_both_names() -> None:
    model, inputs = build(), sample()
    inputs.pop("labels", None)
    decoded = inputs.pop("decoder_input_ids", torch.arange(8).view(2, 4))
    whole = model(**inputs, decoder_input_ids=decoded, use_cache=False).logits
    for name in ("past_key_values", "cache"):
        first = model(**inputs, decoder_input_ids=decoded[:, :2], use_cache=True)
        assert first[CACHE].get_seq_length() == 2
        then = model(**inputs, decoder_input_ids=decoded[:, 2:], **{name: first[CACHE]}).logits
        torch.testing.assert_close(then, whole[:, 2:])
