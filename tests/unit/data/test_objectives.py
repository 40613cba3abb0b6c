"""Objectives: every token once and in order, exact lengths, sentinels that match, and numbers that decide alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from altup_moe.config import ConfigError, DataConfig, ModelConfig
from altup_moe.data.layouts import decoder_only, encoder_decoder
from altup_moe.data.objectives import (
    Pair,
    corrupt_spans,
    longest_window,
    noise_mask,
    prefix_loss_mask,
    sample_generator,
    span_counts,
    split_prefix,
)
from altup_moe.data.recipes import corruption_lengths, objective_of, recipe_of, sample_arrays, wants_sentinels
from altup_moe.data.tokenizer import Tokenizer, train_bpe

EOS, SENTINELS = 1, range(10**6 + 1000, 10**6, -1)
LENGTHS = st.integers(2, 700)
DENSITIES = st.floats(0.02, 0.9)
SPANS = st.floats(1.0, 10.0)
SEEDS = st.integers(0, 2**32 - 1)


def window(length: int) -> np.ndarray:
    return np.arange(10, 10 + length)


def corrupted(length: int, density: float, mean: float, seed: int) -> Pair:
    return corrupt_spans(window(length), noise_mask(length, density, mean, sample_generator(seed)), SENTINELS, EOS)


def restored(pair: Pair) -> list[int]:
    """The window again: each sentinel of the inputs replaced by what follows it in the targets."""
    dropped: dict[int, list[int]] = {}
    for token in pair.targets[:-1].tolist():
        if token in SENTINELS:
            dropped[token] = spelled = []
        else:
            spelled.append(token)
    return [t for token in pair.inputs[:-1].tolist() for t in (dropped.pop(token) if token in SENTINELS else [token])]


@given(LENGTHS, DENSITIES, SPANS, SEEDS)
def test_span_corruption_loses_and_repeats_nothing(length: int, density: float, mean: float, seed: int) -> None:
    pair, counts = corrupted(length, density, mean, seed), span_counts(length, density, mean)
    assert pair.inputs[-1] == pair.targets[-1] == EOS
    assert restored(pair) == window(length).tolist()
    names = [t for t in pair.inputs.tolist() if t in SENTINELS]
    assert names == list(SENTINELS)[: counts.spans] == [t for t in pair.targets.tolist() if t in SENTINELS]
    assert len(pair.targets) == counts.noise + counts.spans + 1
    assert len(pair.inputs) == length - counts.noise + counts.spans + 1
    # Kept and dropped runs take turns: no two sentinels meet, and the targets begin with one.
    assert all(not (a in SENTINELS and b in SENTINELS) for a, b in zip(pair.inputs, pair.inputs[1:], strict=False))
    assert pair.targets[0] in SENTINELS
    assert pair.inputs[0] not in SENTINELS


@given(LENGTHS, DENSITIES, SPANS, SEEDS)
def test_the_share_of_noise_is_the_one_asked_for(length: int, density: float, mean: float, seed: int) -> None:
    mask = noise_mask(length, density, mean, sample_generator(seed))
    assert abs(mask.sum() - length * density) <= 1
    assert np.array_equal(mask, noise_mask(length, density, mean, sample_generator(seed)))


def test_t5_s_lengths() -> None:
    """What T5 publishes for 512 inputs: 568 raw tokens, 114 targets."""
    found = longest_window(lambda lengths: lengths.inputs <= 512, 0.15, 3.0)
    assert found is not None
    assert (found.raw, found.inputs, found.targets) == (568, 512, 114)


@given(st.integers(5, 1500), st.floats(0.05, 0.9), SPANS)
@example(12, 0.5, 1.0)
def test_the_encoder_is_filled(length: int, density: float, mean: float) -> None:
    """Exactly, where fewer tokens are dropped than kept (here whatever rounding does); else to one."""
    found = longest_window(lambda lengths: lengths.inputs <= length, density, mean)
    assert found is not None
    assert length - found.inputs in ((0,) if density <= 0.45 else (0, 1))


def test_every_way_to_cut_is_drawn() -> None:
    """5 kept and 2 dropped tokens in 2 runs each: 4 * 1 masks, all alike likely."""
    drawn = [tuple(noise_mask(7, 2 / 7, 1.0, sample_generator(n))) for n in range(400)]
    counts = [drawn.count(mask) for mask in set(drawn)]
    assert len(counts) == 4
    assert min(counts) > 70


@given(st.integers(2, 300), st.integers(1, 400), SEEDS)
def test_a_prefix_split_keeps_every_token(length: int, longest: int, seed: int) -> None:
    pair = split_prefix(window(length), longest, EOS, sample_generator(seed))
    assert [*pair.inputs[:-1], *pair.targets[:-1]] == window(length).tolist()
    assert 2 <= len(pair.targets) <= longest + 1
    assert len(pair.inputs) >= 2


@given(st.integers(1, 300), SEEDS)
def test_a_prefix_mask_counts_a_tail(length: int, seed: int) -> None:
    mask = prefix_loss_mask(length, sample_generator(seed))
    assert mask[-1] == 1
    assert np.all(np.diff(mask) >= 0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 24), st.integers(2, 24))
def test_an_encoder_and_decoder_read_a_pair(inputs: int, targets: int, encoder: int, decoder: int) -> None:
    pair = Pair(np.append(window(inputs), EOS), np.append(window(targets), EOS))
    arrays = encoder_decoder(pair, encoder, decoder, pad=0)
    assert arrays["encoder_tokens"].shape == arrays["encoder_mask"].shape == (encoder,)
    assert {arrays[key].shape for key in ("tokens", "labels", "loss_mask")} == {(decoder,)}
    read = arrays["encoder_tokens"][arrays["encoder_mask"] == 1]
    assert read[-1] == EOS
    assert len(read) == min(encoder, inputs + 1)
    assert np.all(arrays["encoder_tokens"][arrays["encoder_mask"] == 0] == 0)
    written = arrays["labels"][arrays["loss_mask"] == 1]
    assert written[-1] == EOS
    assert len(written) == min(decoder, targets + 1)
    assert arrays["tokens"][0] == 0
    assert np.array_equal(arrays["tokens"][1 : len(written)], written[:-1])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 24))
def test_a_decoder_alone_learns_the_targets(inputs: int, targets: int, length: int) -> None:
    pair = Pair(np.append(window(inputs), EOS), np.append(100 + window(targets), EOS))
    arrays = decoder_only(pair, length, pad=0)
    assert {array.shape for array in arrays.values()} == {(length,)}
    counted = arrays["labels"][arrays["loss_mask"] == 1]
    assert counted.tolist() == [*(100 + window(targets))[: min(targets, length - 1)], EOS]
    first = int(np.flatnonzero(arrays["loss_mask"])[0])
    assert arrays["tokens"][first] == EOS  # the answer follows the inputs' end
    assert np.array_equal(arrays["tokens"][1 : first + len(counted)], arrays["labels"][: first + len(counted) - 1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(["some text to train on, twice over"] * 3, 400, tmp_path_factory.mktemp("bpe"), sentinels=40)


T5 = ModelConfig(arch="t5", seq_length=64, decoder_seq_length=20, vocab_size=400)
GPT = ModelConfig(seq_length=64, vocab_size=400)


def test_a_tokenizer_with_sentinels(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert (tokenizer.pad_id, tokenizer.eod) == (0, 1)
    top = tokenizer.vocab_size - 1
    assert tokenizer.sentinel_ids == list(range(top, top - 40, -1))
    assert not set(tokenizer.encode("<extra_id_0> <pad>")) & {0, *tokenizer.sentinel_ids}
    assert tokenizer.decode([*tokenizer.encode("plain"), top, 0]) == "plain"
    with pytest.raises(ConfigError, match="at least 298"):
        train_bpe(["a"], 297, tmp_path / "small", sentinels=40)


def test_the_architecture_decides_unless_the_run_does() -> None:
    assert objective_of(T5, DataConfig()) == "span_corruption"
    assert objective_of(GPT, DataConfig()) == "causal"
    assert objective_of(T5, DataConfig(objective="prefix")) == "prefix"
    assert [wants_sentinels(m, DataConfig()) for m in (T5, GPT)] == [True, False]
    assert wants_sentinels(GPT, DataConfig(objective="span_corruption"))


@pytest.mark.parametrize("model", [T5, GPT], ids=["t5", "gpt"])
@pytest.mark.parametrize("objective", ["prefix", "span_corruption"])
def test_a_number_alone_decides_a_sample(model: ModelConfig, objective: str, tokenizer: Tokenizer) -> None:
    recipe = recipe_of(model, DataConfig(objective=objective), tokenizer)
    assert recipe is not None
    tokens = np.arange(2, 2 + recipe.window)

    def sample(*key: int) -> str:
        return str({name: array.tolist() for name, array in sample_arrays(recipe, tokens, *key).items()})

    assert sample(7, 0, 3) == sample(7, 0, 3)
    assert len({sample(*key) for key in ((7, 0, 3), (8, 0, 3), (7, 1, 3), (7, 0, 4))}) == 4
    arrays = sample_arrays(recipe, tokens, 7, 0, 3)
    assert ("encoder_tokens" in arrays) == (model.arch == "t5")
    length = model.decoder_seq_length if model.arch == "t5" else model.seq_length
    assert arrays["tokens"].shape == arrays["labels"].shape == arrays["loss_mask"].shape == (length,)


def test_span_corruption_fills_both_architectures(tokenizer: Tokenizer) -> None:
    found = corruption_lengths(GPT, DataConfig())
    assert found.inputs + found.targets in (64, 65)
    assert corruption_lengths(T5, DataConfig()).inputs == 64
    recipe = recipe_of(T5, DataConfig(), tokenizer)
    assert recipe is not None
    assert sample_arrays(recipe, np.arange(2, 2 + recipe.window), 1, 0, 0)["encoder_mask"].sum() == 64


def test_lengths_and_sentinels_that_do_not_fit_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.decoder_seq_length=8: the targets of 64 input tokens have 1\d"):
        recipe_of(replace(T5, decoder_seq_length=8), DataConfig(), tokenizer)
    with pytest.raises(ConfigError, match=r"model\.seq_length=2"):
        recipe_of(replace(T5, seq_length=2), DataConfig(), tokenizer)
    plain = train_bpe(["some text"], 260, tmp_path / "plain")
    assert plain.pad_id == plain.eod
    with pytest.raises(ConfigError, match=r"data\.tokenizer.*has 0 sentinels .* takes \d a sample"):
        recipe_of(T5, DataConfig(), plain)
