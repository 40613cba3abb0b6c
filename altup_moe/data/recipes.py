"""The training objective of a run as a `SampleRecipe`: the length of a raw window, and how it becomes a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from altup_moe.config import DataConfig, ModelConfig
from altup_moe.config.errors import ConfigError
from altup_moe.data.layouts import Arrays, decoder_only, encoder_decoder, next_tokens
from altup_moe.data.objectives import (
    Pair,
    SpanLengths,
    corrupt_spans,
    longest_window,
    noise_mask,
    prefix_loss_mask,
    sample_generator,
    span_counts,
    split_prefix,
)
from altup_moe.data.tokenizer import Tokenizer

Layout = Callable[[Pair], Arrays]


@dataclass(frozen=True)
class SampleRecipe:
    """How raw tokens become a sample.

    Args:
        window: number of consecutive tokens of one sample.
        make: (tokens int64 [window + overlap], this sample's generator) -> the model's arrays. The last window of a
            validation has fewer tokens, at least 2; its arrays are padded.
        overlap: 1 if the token after the window is read as well, as the label of its last one.
    """

    window: int
    make: Callable[[np.ndarray, np.random.RandomState], Arrays]
    overlap: int = 0


Objective = Callable[[ModelConfig, DataConfig, Tokenizer], SampleRecipe]
"""What `data.objective` names: the recipe of a run's samples."""


def objective_of(model: ModelConfig, data: DataConfig) -> str:
    """`data.objective`, or what the architecture is usually trained on."""
    return data.objective or model.architecture.objectives[0]


def wants_sentinels(model: ModelConfig, data: DataConfig) -> bool:
    """Whether a tokenizer made for this run needs a pad token and sentinels."""
    return model.encoder_decoder or objective_of(model, data) == "span_corruption"


def layout_of(model: ModelConfig, tokenizer: Tokenizer) -> Layout:
    """The function that converts a pair of inputs and targets to this architecture's arrays."""
    pad, start = tokenizer.pad_id, tokenizer.start_id
    if model.encoder_decoder:
        return lambda pair: encoder_decoder(pair, model.seq_length, model.decoder_length, pad, start)
    return lambda pair: decoder_only(pair, model.seq_length, pad)


def recipe_of(model: ModelConfig, data: DataConfig, tokenizer: Tokenizer) -> SampleRecipe:
    """The recipe for a run's corpora.

    Raises:
        ConfigError: no window fits the lengths, or the tokenizer has too few sentinels.
    """
    return OBJECTIVES[objective_of(model, data)](model, data, tokenizer)


def causal(model: ModelConfig, data: DataConfig, tokenizer: Tokenizer) -> SampleRecipe:
    """Every next token."""
    length, pad = model.seq_length, tokenizer.pad_id
    return SampleRecipe(
        length, lambda tokens, _: next_tokens(tokens, np.ones(len(tokens) - 1, np.float32), length, pad), overlap=1
    )


def prefix(model: ModelConfig, data: DataConfig, tokenizer: Tokenizer) -> SampleRecipe:
    """The tokens after a random point."""
    length, pad = model.seq_length, tokenizer.pad_id
    if model.encoder_decoder:
        layout, longest, eos = layout_of(model, tokenizer), model.decoder_length - 1, tokenizer.eod
        return SampleRecipe(length, lambda tokens, random: layout(split_prefix(tokens, longest, eos, random)))
    return SampleRecipe(
        length + 1,
        lambda tokens, random: next_tokens(tokens, prefix_loss_mask(len(tokens) - 1, random), length, pad),
    )


def span_corruption(model: ModelConfig, data: DataConfig, tokenizer: Tokenizer) -> SampleRecipe:
    """Dropped spans. Raises ConfigError as `recipe_of`."""
    layout, eos = layout_of(model, tokenizer), tokenizer.eod
    density, mean = data.noise_density, data.mean_noise_span
    lengths = corruption_lengths(model, data)
    sentinels = enough_sentinels(tokenizer, span_counts(lengths.raw, density, mean).spans)

    def make(tokens: np.ndarray, random: np.random.RandomState) -> Arrays:
        return layout(corrupt_spans(tokens, noise_mask(len(tokens), density, mean, random), sentinels, eos))

    return SampleRecipe(lengths.raw, make)


OBJECTIVES: dict[str, Objective] = {"causal": causal, "prefix": prefix, "span_corruption": span_corruption}
"""Every objective by its name in `data.objective`; `config.architectures` says which architecture takes which."""


def corruption_lengths(model: ModelConfig, data: DataConfig) -> SpanLengths:
    """Window, input and target lengths of span corruption for a model.

    Raises:
        ConfigError: no window fits, or its targets do not fit into model.decoder_seq_length.
    """
    density, mean, length = data.noise_density, data.mean_noise_span, model.seq_length
    if model.encoder_decoder:
        found = longest_window(lambda lengths: lengths.inputs <= length, density, mean)
    else:  # one sequence holds both, and its first token is no label
        found = longest_window(lambda lengths: lengths.inputs + lengths.targets <= length + 1, density, mean)
    if found is None:
        raise ConfigError("model.seq_length", length, "span corruption needs at least 5 tokens")
    if model.encoder_decoder and found.targets > model.decoder_length:
        fits = f"the targets of {found.inputs} input tokens have {found.targets}; at least that would fit"
        raise ConfigError("model.decoder_seq_length", model.decoder_length, fits)
    return found


def enough_sentinels(tokenizer: Tokenizer, spans: int) -> Sequence[int]:
    """Ids of the first `spans` sentinels.

    Raises:
        ConfigError: the tokenizer has fewer.
    """
    found = tokenizer.sentinel_ids
    if len(found) < spans:
        fits = f"has {len(found)} sentinels (<extra_id_0>, ...), and span corruption takes {spans} a sample; "
        fits += "another tokenizer would fit, null with data.sentinels of at least that, or a larger mean_noise_span"
        raise ConfigError("data.tokenizer", str(tokenizer.directory), fits)
    return found[:spans]


def sample_arrays(recipe: SampleRecipe, tokens: np.ndarray, seed: int, split: int, number: int) -> Arrays:
    """The arrays of sample `number`: a function of its tokens and (seed, split, number) alone."""
    return recipe.make(tokens, sample_generator(seed, split, number))
