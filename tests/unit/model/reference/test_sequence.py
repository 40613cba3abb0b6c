"""Strided layers of the plain PyTorch model: causal, and the same whether tokens come at once or in pieces."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from altup_moe.config import ConfigError, ModelConfig, RunConfig, SequenceConfig
from altup_moe.model.reference.gpt import AltUpMoEConfig, AltUpMoEForCausalLM
from altup_moe.model.reference.layers import DROPLESS, Attention
from tests.models import assert_same_model
from tests.unit.model.reference.test_gpt import MOE, TINY, tokens

METHODS = ("altup", "stride_and_skip", "average_pool")
EVERY = {"sequence_layers": "0..-1"}


def build(dtype: torch.dtype = torch.float64, **fields: Any) -> AltUpMoEForCausalLM:
    """A tiny model of stride 4 with its coefficients pushed off their initial values."""
    torch.manual_seed(0)
    config = AltUpMoEConfig(**{**TINY, "sequence_stride": 4, **fields})
    model = AltUpMoEForCausalLM(config).eval()
    for name, p in model.named_parameters():
        if ".altup." in name or ".sequence." in name or "norm" in name:
            p.data.add_(0.3 * torch.randn_like(p))
    return model.to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", [{}, {"altup_width": 4}, {"altup_width": 2, "altup_variant": "gemma", **EVERY}])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_no_position_sees_a_later_one(method: str, stream: dict[str, Any], stride: int) -> None:
    model, ids = build(**MOE, **stream, sequence_method=method, sequence_stride=stride), tokens(length=13)
    before = model(ids).logits
    for at in range(13):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 1) % 61
        after = model(changed).logits
        torch.testing.assert_close(before[:, :at], after[:, :at], rtol=0, atol=1e-12)
        if method != "average_pool":
            assert (before[:, at] - after[:, at]).abs().max() > 1e-3


def by_hiding(layer: Any, x_BSD: Tensor) -> Tensor:
    """Altup's y by another way: F on ALL tokens, each of which may look at anchors only, and F(x)_a read from it."""
    s = x_BSD.shape[1]
    at = torch.arange(s)
    mask = ((at <= at[:, None]) & (at % 4 == 0)) | torch.eye(s, dtype=torch.bool)
    everywhere, _ = layer.transform(x_BSD, DROPLESS, at[None], mask[None, None], None)
    (a1, a2), b, anchor = layer.sequence.predict, layer.sequence.correct, at // 4 * 4
    predicted = a1 * x_BSD + a2 * x_BSD[:, anchor]
    return predicted + b * (everywhere - predicted)[:, anchor]


def test_anchors_are_tokens_that_others_do_not_hear() -> None:
    layer = build().model.layers[1]
    x_BSD = torch.randn(2, 13, 32, dtype=torch.float64)
    got, _ = layer.compute(x_BSD, DROPLESS, torch.arange(13)[None], None, None)
    torch.testing.assert_close(got, by_hiding(layer, x_BSD))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fields", [{}, EVERY, {**MOE, "altup_width": 4}, {**MOE, **EVERY, "altup_width": 2}])
def test_greedy_and_beams_with_a_cache_are_those_without(method: str, fields: dict[str, Any]) -> None:
    model = build(sequence_method=method, **fields)
    for kwargs in ({}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}):
        both = [
            model.generate(tokens(length=7), use_cache=cached, max_new_tokens=11, do_sample=False, **kwargs)
            for cached in (True, False)
        ]
        assert both[0].shape[1] == 18
        assert torch.equal(*both)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(1,) * 14, (5, 1, 8), (3, 4, 4, 3), (2, 12), (13, 1)])
def test_pieces_give_the_logits_of_the_whole(method: str, sizes: tuple[int, ...]) -> None:
    model, ids = build(**MOE, sequence_method=method, sequence_layers="0..1"), tokens(length=14)
    cache, stops = DynamicCache(config=model.config), list(itertools.accumulate(sizes))
    got = []
    for size, stop in zip(sizes, stops, strict=True):
        got.append(model(ids[:, stop - size : stop], past_key_values=cache, use_cache=True).logits)
        assert cache.get_seq_length() == stop
    torch.testing.assert_close(torch.cat(got, dim=1), model(ids, use_cache=False).logits)
    # Layers 0 and 1 stride, 2 does not.
    assert [layer.keys.shape[-2] for layer in cache.layers] == [4, 4, 14]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layers", ["1..-2", "0..-1"])
def test_prompts_of_unequal_length_generate_as_alone(method: str, layers: str) -> None:
    model = build(**MOE, altup_width=2, pad_token_id=0, sequence_method=method, sequence_layers=layers)
    prompts = [tokens(1, length, seed=length) for length in (9, 4, 1)]
    rows = [torch.cat((torch.zeros(1, 9 - p.shape[1], dtype=torch.long), p), 1) for p in prompts]
    padding = torch.cat([torch.arange(9)[None] >= 9 - p.shape[1] for p in prompts]).long()
    logits = model(torch.cat(rows), padding).logits
    together = model.generate(torch.cat(rows), attention_mask=padding, max_new_tokens=9, do_sample=False)
    for n, prompt in enumerate(prompts):
        pad = 9 - prompt.shape[1]
        torch.testing.assert_close(logits[n, pad:], model(prompt).logits[0])
        assert torch.equal(together[n, pad:], model.generate(prompt, max_new_tokens=9, do_sample=False)[0])


@pytest.mark.parametrize("method", METHODS)
def test_only_anchors_run_the_layer(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = build(sequence_method=method), [0, 0, 0]
    real = Attention.forward

    def count(self: Attention, x_BSD: Tensor, *args: Any) -> Tensor:
        seen[self.layer] += x_BSD.shape[1]
        return real(self, x_BSD, *args)

    monkeypatch.setattr(Attention, "forward", count)
    model(tokens(length=14))
    assert seen == [14, 4, 14]
    model.generate(tokens(length=6), max_new_tokens=9, do_sample=False)  # the last one is not fed back
    assert seen == [28, 8, 28]


def test_experts_see_and_count_anchors_alone() -> None:
    losses = build(**{**MOE, "moe_layer_freq": 1}).losses(tokens(length=12), tokens(length=12))
    assert {n: int(counts.sum()) for n, counts in losses.counts.items()} == {0: 2 * 2 * 12, 1: 2 * 2 * 3, 2: 2 * 2 * 12}


def test_a_cache_of_fixed_size_or_one_cut_short_is_refused() -> None:
    model = build()
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(tokens(), cache_implementation="static", max_new_tokens=4, do_sample=False)
    cache = model(tokens(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


def test_a_cache_is_used_again_after_a_reset() -> None:
    model, cache = build(), DynamicCache()
    first = model(tokens(), past_key_values=cache, use_cache=True).logits
    cache.reset()
    assert cache.get_seq_length(1) == 0
    torch.testing.assert_close(model(tokens(), past_key_values=cache, use_cache=True).logits, first)


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_and_halved(method: str, tmp_path: Path) -> None:
    model = build(torch.float32, sequence_method=method, altup_width=2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert_same_model(loaded, model, lambda of: of(tokens()).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, value in half.state_dict().items():
        kept = ".sequence." in name or ".altup." in name
        assert value.dtype == (torch.float32 if kept else torch.bfloat16), name
    assert half(tokens()).logits.dtype == torch.bfloat16
    names = {name for name in model.state_dict() if ".sequence." in name}
    wanted = {"model.layers.1.sequence.predict", "model.layers.1.sequence.correct"} if method == "altup" else set()
    assert names == wanted


def test_new_coefficients() -> None:
    layer = AltUpMoEForCausalLM(AltUpMoEConfig(**TINY, sequence_stride=2)).model.layers[1]
    assert layer.sequence.predict.tolist() == [1.0, 0.0]
    assert layer.sequence.correct.tolist() == [1.0]


def test_the_run_says_what_strides() -> None:
    run = RunConfig(ModelConfig(num_layers=6), sequence=SequenceConfig(3, "-5..3", "average_pool"))
    config = AltUpMoEConfig.from_run(run)
    assert (config.sequence_stride, config.sequence_layers, config.sequence_method) == (3, "-5..3", "average_pool")
    assert [n for n in range(6) if config.is_strided(n)] == [1, 2, 3]
    assert not any(AltUpMoEConfig.from_run(RunConfig()).is_strided(n) for n in range(8))


@pytest.mark.parametrize(
    ("fields", "key"),
    [({"sequence_method": "max"}, "sequence_method='max'"), ({"sequence_layers": "2..1"}, "sequence_layers='2..1'")],
)
def test_what_cannot_be(fields: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        build(**fields)
