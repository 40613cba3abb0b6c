"""The models that `bench sequence` compares, and what it prints of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from altup_moe.bench.bench_sequence import PLAIN, bench_sequence, measure_sequence, models
from altup_moe.bench.options import SequenceBench
from altup_moe.config import ConfigError, SequenceConfig
from altup_moe.model.flops import attention_flops

TINY = SequenceBench(
    hidden_size=64, num_layers=3, seq_length=16, micro_batch_size=1, repeats=1, threads=1, methods=("altup",)
)


def test_models_differ_in_their_strides_alone() -> None:
    plain, strided = models(TINY).values()
    assert plain.sequence.stride == 1
    assert strided.sequence == SequenceConfig(4, "1..-2", "altup")
    assert plain.model == strided.model
    assert attention_flops(strided) == pytest.approx(attention_flops(plain) * (2 + 1 / 16) / 3)


def test_an_encoder_decoder_strides_in_its_encoder() -> None:
    plain, strided = models(replace(TINY, arch="t5", decoder_seq_length=8)).values()
    assert (plain.model.arch, plain.model.decoder_layers, plain.model.decoder_length) == ("t5", 3, 8)
    assert plain.model == strided.model
    # All scores in the encoder, half of them in the decoder, and all across.
    decoder, layer = 3 * (8 * 8 / 2 + 8 * 16), 16 * 16
    ratio = (decoder + (2 + 1 / 16) * layer) / (decoder + 3 * layer)
    assert attention_flops(strided) == pytest.approx(attention_flops(plain) * ratio)


def test_measures_an_encoder_decoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_sequence(replace(TINY, arch="t5", decoder_seq_length=8)) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("t5, hidden 64, encoder of 3 layers of which 1..-2 stride by 4, decoder of 3, K = 1")
    assert "16 tokens read, 8 written" in printed


def test_measures_every_model_and_prints_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_sequence(replace(TINY, json=True)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in printed["methods"]] == [PLAIN, "altup"]
    assert printed["methods"][0]["times_faster"] == 1


def test_a_stride_that_does_not_divide_is_a_users_error() -> None:
    with pytest.raises(ConfigError, match=r"sequence\.stride=5"):
        measure_sequence(SequenceBench(stride=5))
