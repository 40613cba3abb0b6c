"""Strided layers of the plain PyTorch encoder-decoder: against loops over windows, causal, padded, with a cache."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from altup_moe.config import AltUpConfig, ConfigError, ModelConfig, RunConfig, SequenceConfig
from altup_moe.model.reference.layers import DROPLESS
from altup_moe.model.reference.sequence import StridedEncoder
from altup_moe.model.reference.t5 import AltUpMoEForConditionalGeneration, T5Attention, T5Layer
from altup_moe.model.reference.t5_config import AltUpMoET5Config
from altup_moe.parallel.parameter_names import global_shapes
from tests.models import assert_same_model
from tests.unit.model.reference.test_t5 import EXPERTS, T5, sample

METHODS = ("altup", "stride_and_skip", "average_pool")
BOTH = {"sequence_layers": "0..-1", "sequence_decoder_layers": "0..-1"}
STREAMS: list[dict[str, Any]] = [{}, {"altup_width": 4, "altup_recycled": False, "altup_cross_attention": "wide"}]


def build(dtype: torch.dtype = torch.float64, **fields: Any) -> AltUpMoEForConditionalGeneration:
    """A tiny model of stride 4, in both stacks unless told, with norms, coefficients and biases that count."""
    torch.manual_seed(0)
    shape = {**T5, "decoder_layers": 3, **EXPERTS, "sequence_stride": 4, **BOTH, **fields}
    model = AltUpMoEForConditionalGeneration(AltUpMoET5Config(**shape)).eval()
    for name, p in model.named_parameters():
        if any(part in name for part in (".altup.", ".sequence.", "norm", "bias")):
            p.data.add_(0.3 * torch.randn_like(p))
    return model.to(dtype)


def loop(layer: T5Layer, x_SD: Tensor, bias: Any, count: int, context_TE: Tensor | None) -> Tensor:
    """One sample through a strided layer, window by window. ``count``: tokens, behind which x is padding."""
    s, method, decodes = layer.sequence.stride, layer.sequence.method, context_TE is not None
    anchors = range(0, len(x_SD), s)
    inputs = []
    for a in anchors:
        if method != "average_pool":
            inputs.append(x_SD[a])
        elif decodes:
            inputs.append(x_SD[max(0, a - s + 1) : a + 1].mean(0))
        else:
            inputs.append(x_SD[a : min(a + s, count if a < count else len(x_SD))].mean(0))
    u = torch.stack(inputs)
    at = torch.arange(len(u))
    biases = torch.stack([torch.stack([bias(q, k) for k in anchors]) for q in anchors]).permute(2, 0, 1)[None]
    visible = at <= at[:, None] if decodes else (at * s < count).expand(len(u), -1)
    whole = None if context_TE is None else context_TE[None]
    y, _ = layer.transform(u[None], DROPLESS, biases, visible[None, None], whole, torch.ones(1, dtype=torch.bool), None)
    out = []
    for i in range(len(x_SD)):
        w, x, ua, ya = i // s, x_SD[i], u[i // s], y[0, i // s]
        if method == "altup":
            (a1, a2), b = layer.sequence.predict, layer.sequence.correct
            out.append(a1 * x + a2 * ua + b * (ya - (a1 * ua + a2 * ua)))
        elif method == "stride_and_skip":
            out.append(ya if i == w * s else x)
        else:
            out.append(ya)
    return torch.stack(out)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_a_loop_over_windows(method: str, stack: str) -> None:
    """Narrow streams, 14 positions in windows of 4, of which the first sample has all and the second 6 (an encoder)."""
    model = build(sequence_method=method)
    module, decodes = getattr(model, stack), stack == "decoder"
    x = torch.randn(2, 14, 32, dtype=torch.float64)
    context = torch.randn(2, 9, 32, dtype=torch.float64) if decodes else None
    padding = None if decodes else (torch.arange(14) < torch.tensor([[14], [6]])).long()
    got, _ = module(x, padding, context)

    def bias(query: int, key: int) -> Tensor:
        return module.relative_attention_bias(torch.tensor([[query]]), torch.tensor([[key]]))[0, :, 0, 0]

    for row in (0, 1):
        expected, count = x[row], 14 if decodes else int(padding[row].sum())
        for layer in module.layers:
            expected = loop(layer, expected, bias, count, None if context is None else context[row])
        torch.testing.assert_close(got[row], module.norm(expected))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_no_logit_depends_on_a_later_token_of_the_decoder(method: str, stream: dict[str, Any], stride: int) -> None:
    model, given = build(**stream, sequence_method=method, sequence_stride=stride), sample()
    inputs, ids = {name: given[name] for name in ("input_ids", "attention_mask")}, given["labels"][:, :13]
    before = model(**inputs, decoder_input_ids=ids).logits
    for at in range(13):
        changed = ids.clone()
        changed[:, at] = (changed[:, at] + 1) % 61
        after = model(**inputs, decoder_input_ids=changed).logits
        torch.testing.assert_close(before[:, :at], after[:, :at], rtol=0, atol=1e-12)
        if method != "average_pool":
            assert (before[:, at] - after[:, at]).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_looks_both_ways(method: str) -> None:
    """Its first position hears the last window's first token, and of the others what pooling lets through."""
    model = build(sequence_method=method)
    embedded = torch.randn(1, 16, 32, dtype=torch.float64, requires_grad=True)
    output, _ = model.encoder(embedded, None)
    (gradient,) = torch.autograd.grad(output[0, 0].sum(), embedded)
    heard = gradient[0].abs().sum(-1) > 1e-12
    assert heard[::4].all()
    assert heard[1::4].all() == (method == "average_pool")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("tokens", [12, 15])
def test_padding_is_not_seen_on_either_side(method: str, stream: dict[str, Any], tokens: int) -> None:
    """Cut off, filled with anything, or before the tokens: 15 of 21 end inside a window, 12 at one's border."""
    model, given = build(**stream, sequence_method=method), sample()
    given["attention_mask"][1] = torch.arange(21) < tokens
    whole = model(**given).logits
    alone = {name: value[1:, :tokens] if name != "labels" else value[1:] for name, value in given.items()}
    torch.testing.assert_close(whole[1], model(**alone).logits[0], rtol=1e-10, atol=1e-10)
    given["input_ids"][1, tokens:] = 7
    torch.testing.assert_close(whole, model(**given).logits, rtol=1e-10, atol=1e-10)
    turned = {name: given[name].clone() for name in given}
    for name in ("input_ids", "attention_mask"):
        turned[name][1] = given[name][1].roll(21 - tokens)
    torch.testing.assert_close(whole, model(**turned).logits, rtol=1e-10, atol=1e-10)


def test_a_sample_of_padding_alone_is_finite() -> None:
    for method in METHODS:
        model, given = build(sequence_method=method), sample()
        given["attention_mask"][1] = 0
        loss = model(**given).loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decoder", [None, "0..-1", "1..1"])
def test_generation_with_a_cache_is_generation_without(method: str, decoder: str | None) -> None:
    model, given = build(sequence_method=method, sequence_decoder_layers=decoder), sample()
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    common = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    for kwargs in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        both = [model.generate(**inputs, **common, **kwargs, use_cache=cached) for cached in (True, False)]
        assert both[0].shape[1] == 13
        assert len(both[0].unique()) > 2
        assert torch.equal(*both)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(1,) * 14, (5, 1, 8), (3, 4, 4, 3)])
def test_pieces_give_the_logits_of_the_whole(method: str, sizes: tuple[int, ...]) -> None:
    """The encoder once, the decoder's tokens in pieces: its anchors' keys alone are kept."""
    model, given = build(sequence_method=method, sequence_decoder_layers="0..1"), sample()
    ids = given["labels"][:, :14]
    once = model.get_encoder()(given["input_ids"], given["attention_mask"])
    inputs = {"encoder_outputs": BaseModelOutput(once[0]), "attention_mask": given["attention_mask"]}
    cache, got = EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True):
        piece = ids[:, stop - size : stop]
        got.append(model(**inputs, decoder_input_ids=piece, past_key_values=cache, use_cache=True).logits)
        assert cache.get_seq_length() == stop
    torch.testing.assert_close(torch.cat(got, dim=1), model(**inputs, decoder_input_ids=ids, use_cache=False).logits)
    assert [layer.keys.shape[-2] for layer in cache.self_attention_cache.layers] == [4, 4, 14]
    assert [layer.keys.shape[-2] for layer in cache.cross_attention_cache.layers] == [21, 21, 21]


@pytest.mark.parametrize("method", METHODS)
def test_decoder_rows_padded_on_the_left_are_as_alone(method: str) -> None:
    """Each row's anchors and their distances are counted from its own first token."""
    model, given = build(sequence_method=method), sample()
    inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
    ids, mask = given["labels"][:, :9].clone(), torch.ones(2, 9, dtype=torch.long)
    ids[1], mask[1] = ids[1].roll(3), torch.arange(9) >= 3
    got = model(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    alone = {name: value[1:] for name, value in inputs.items()}
    torch.testing.assert_close(got[1, 3:], model(**alone, decoder_input_ids=ids[1:, 3:]).logits[0])


def test_only_anchors_run_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1 of three in either stack strides, its attention to the context too, which reads all of that."""
    model, seen = build(sequence_layers="1..-2", sequence_decoder_layers="1..-2"), []
    real = T5Attention.forward

    def count(self: T5Attention, x_BSD: Tensor, k_BHTC: Tensor, *args: Any) -> Tensor:
        seen.append((x_BSD.shape[1], k_BHTC.shape[2]))
        return real(self, x_BSD, k_BHTC, *args)

    monkeypatch.setattr(T5Attention, "forward", count)
    model(**sample(), use_cache=False)
    assert seen == [(21, 21), (6, 6), (21, 21), (17, 17), (17, 21), (5, 5), (5, 21), (17, 17), (17, 21)]


def test_experts_see_and_count_anchors_alone() -> None:
    """Of them no padding."""
    model, given = build(sequence_decoder_layers=None), sample()
    mask = given["attention_mask"]
    losses = model.losses(given["input_ids"], mask.float(), given["labels"], given["labels"])
    expected = {1: 2 * int(mask[:, ::4].sum()), 4: 2 * 2 * 17}
    assert {n: int(counts.sum()) for n, counts in losses.counts.items()} == expected


@pytest.mark.parametrize("method", METHODS)
def test_saved_and_loaded_and_halved(method: str, tmp_path: Path) -> None:
    model = build(torch.float32, sequence_method=method, altup_width=2)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert_same_model(loaded, model, lambda of: of(**sample()).logits)
    half = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, value in half.state_dict().items():
        kept = ".sequence." in name or ".altup." in name
        assert value.dtype == (torch.float32 if kept else torch.bfloat16), name
    assert half(**sample()).logits.dtype == torch.bfloat16
    names = {name for name in model.state_dict() if ".sequence." in name}
    assert len(names) == (12 if method == "altup" else 0)


def test_new_coefficients() -> None:
    model = AltUpMoEForConditionalGeneration(AltUpMoET5Config(**T5, sequence_stride=2))
    assert [layer.sequence is None for layer in model.encoder.layers] == [True, False, True]
    assert all(layer.sequence is None for layer in model.decoder.layers)
    layer = model.encoder.layers[1].sequence
    assert isinstance(layer, StridedEncoder)
    assert (layer.predict.tolist(), layer.correct.tolist()) == ([1.0, 0.0], [1.0])


def test_the_run_says_what_strides() -> None:
    model = ModelConfig(6, 32, 48, 4, 4, arch="t5", num_decoder_layers=5)
    run = RunConfig(model, AltUpConfig(1), sequence=SequenceConfig(4, "-5..3", "average_pool", "-2..-1"))
    config = AltUpMoET5Config.from_run(run)
    assert [n for n in range(6) if config.is_strided(n)] == [1, 2, 3]
    assert [n for n in range(5) if config.decoder_strides(n)] == [3, 4]


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_have_the_models_names(method: str) -> None:
    """Other ranges in the two stacks, of other depths."""
    shape = ModelConfig(4, 32, 48, 4, 4, 24, 99, False, arch="t5", num_decoder_layers=3)
    run = RunConfig(shape, AltUpConfig(2), sequence=SequenceConfig(4, "1..-2", method, "2..2"))
    parameters = AltUpMoEForConditionalGeneration(AltUpMoET5Config.from_run(run)).named_parameters()
    assert {name: tuple(p.shape) for name, p in parameters} == global_shapes(run)


def test_layers_that_the_decoder_has_not_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sequence_decoder_layers='0\.\.3'"):
        build(sequence_decoder_layers="0..3")
