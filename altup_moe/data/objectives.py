"""Training objectives as pure functions of tokens and a random generator (numpy alone).

Span corruption is T5's (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): sentinels replace spans of a window, and
the targets contain the replaced tokens. Window lengths follow T5's arithmetic, so that inputs fill the encoder: a
window of 568 tokens gives 512 input and 114 target tokens. Shape suffix: L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pair:
    """Input and target token ids (int64), each with the end token appended."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class SpanCounts:
    """Numbers of dropped tokens (noise) and of the spans that they form in a window."""

    noise: int
    spans: int


@dataclass(frozen=True)
class SpanLengths:
    """Numbers of tokens of a raw window and of its inputs and targets (with sentinels and end tokens)."""

    raw: int
    inputs: int
    targets: int


def sample_generator(*key: int) -> np.random.RandomState:
    """The random generator of one sample, seeded by e.g. (seed, split, number), independent of all other samples.

    numpy guarantees the stream of `RandomState`: no release can change what a sample draws.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def span_counts(length: int, noise_density: float, mean_span: float) -> SpanCounts:
    """Noise tokens and spans of a window of `length` >= 2 tokens; neither spans nor the gaps between them are empty."""
    noise = min(max(round(length * noise_density), 1), length - 1)
    return SpanCounts(noise, min(max(round(noise / mean_span), 1), noise, length - noise))


def longest_window(fits: Callable[[SpanLengths], bool], noise_density: float, mean_span: float) -> SpanLengths | None:
    """The longest raw window whose inputs and targets fit (T5's `random_spans_helper`); None if 2 tokens do not fit.

    If fewer tokens are dropped than kept, one more raw token adds at most one input token, so the inputs fill the
    length exactly. Otherwise one more kept token can add a span as well, and one position may stay unused.
    """
    best, raw = None, 2
    while fits(lengths := _lengths(raw, noise_density, mean_span)):
        best, raw = lengths, raw + 1
    return best


def _lengths(raw: int, noise_density: float, mean_span: float) -> SpanLengths:
    counts = span_counts(raw, noise_density, mean_span)
    return SpanLengths(raw, raw - counts.noise + counts.spans + 1, counts.noise + counts.spans + 1)


def noise_mask(length: int, noise_density: float, mean_span: float, random: np.random.RandomState) -> np.ndarray:
    """Whether each token is dropped, bool [L]. Kept and dropped runs alternate; the first is kept; none is empty.

    The lengths are uniform over all partitions (T5's `random_spans_noise_mask`).
    """
    counts = span_counts(length, noise_density, mean_span)
    dropped = _segments(counts.noise, counts.spans, random)
    kept = _segments(length - counts.noise, counts.spans, random)
    runs = np.stack([kept, dropped], axis=1).ravel()
    return np.repeat(np.arange(runs.size) % 2 == 1, runs)


def _segments(items: int, segments: int, random: np.random.RandomState) -> np.ndarray:
    """Lengths of a random partition of `items` into `segments` non-empty runs."""
    cuts = np.sort(random.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def corrupt_spans(tokens_L: np.ndarray, noise_L: np.ndarray, sentinels: Sequence[int], eos: int) -> Pair:
    """Replace the k-th dropped run by sentinel k in the inputs; in the targets it follows sentinel k.

    Args:
        sentinels: at least as many ids as there are runs of noise.
    """
    starts_L = noise_L & ~np.concatenate([[False], noise_L[:-1]])
    names = np.asarray(sentinels, dtype=np.int64)[: int(starts_L.sum())]
    inputs = tokens_L.astype(np.int64)
    inputs[starts_L] = names
    inputs = inputs[starts_L | ~noise_L]
    before_each = np.flatnonzero(starts_L[noise_L])
    targets = np.insert(tokens_L[noise_L].astype(np.int64), before_each, names)
    return Pair(np.append(inputs, eos), np.append(targets, eos))


def split_prefix(tokens_L: np.ndarray, longest_target: int, eos: int, random: np.random.RandomState) -> Pair:
    """Split a window at a random point into inputs and targets; targets have 1 to `longest_target` tokens.

    Prefix language modelling for an encoder and a decoder (arXiv 1910.10683, section 3.2.3).
    """
    target = int(random.randint(1, min(longest_target, len(tokens_L) - 1) + 1))
    return Pair(
        np.append(tokens_L[:-target], eos).astype(np.int64), np.append(tokens_L[-target:], eos).astype(np.int64)
    )


def prefix_loss_mask(length: int, random: np.random.RandomState) -> np.ndarray:
    """Loss mask of a decoder-only sample, float32 [L]: 1 from a random point on, for at least one label.

    Attention stays causal; the prefix is only excluded from the loss.
    """
    return (np.arange(length) >= random.randint(0, length)).astype(np.float32)
