"""Training objectives as pure functions of tokens and a random generator (numpy alone).

Span corruption is T5's (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): spans of a window are dropped, sentinels
stand in their places, and the targets spell what was dropped. Window lengths follow T5's arithmetic, so that inputs
fill the encoder: 568 raw tokens are 512 of input and 114 of target. Shape suffixes: L tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pair:
    """Tokens to read and tokens to write (int64), each ended by the end token."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class SpanCounts:
    """How many of a window's tokens are dropped, in how many spans."""

    noise: int
    spans: int


@dataclass(frozen=True)
class SpanLengths:
    """Tokens of a raw window, and of the inputs and targets it becomes (sentinels and end tokens included)."""

    raw: int
    inputs: int
    targets: int


def sample_generator(*key: int) -> np.random.RandomState:
    """The generator of one sample, by e.g. (seed, split, number): no other sample's draws disturb it.

    `RandomState`, whose stream numpy has frozen: no release can change what a number draws.
    """
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def span_counts(length: int, noise_density: float, mean_span: float) -> SpanCounts:
    """Noise tokens and spans of a window of `length` >= 2 tokens; every span, and what lies between, has a token."""
    noise = min(max(round(length * noise_density), 1), length - 1)
    return SpanCounts(noise, min(max(round(noise / mean_span), 1), noise, length - noise))


def longest_window(fits: Callable[[SpanLengths], bool], noise_density: float, mean_span: float) -> SpanLengths | None:
    """The longest raw window whose inputs and targets fit (T5's `random_spans_helper`); None if none of 2 tokens does.

    A raw token more is at most one more of input, so what fits is filled exactly, as long as fewer tokens are dropped
    than kept. Else kept tokens can be too few to part the spans: one more of them then brings a span with it, and one
    place may stay empty.
    """
    best, raw = None, 2
    while fits(lengths := _lengths(raw, noise_density, mean_span)):
        best, raw = lengths, raw + 1
    return best


def _lengths(raw: int, noise_density: float, mean_span: float) -> SpanLengths:
    counts = span_counts(raw, noise_density, mean_span)
    return SpanLengths(raw, raw - counts.noise + counts.spans + 1, counts.noise + counts.spans + 1)


def noise_mask(length: int, noise_density: float, mean_span: float, random: np.random.RandomState) -> np.ndarray:
    """Which tokens are dropped, bool [L]: kept and dropped runs in turn, none empty, beginning with a kept one.

    Their lengths are drawn uniformly among all ways to cut (T5's `random_spans_noise_mask`).
    """
    counts = span_counts(length, noise_density, mean_span)
    dropped = _segments(counts.noise, counts.spans, random)
    kept = _segments(length - counts.noise, counts.spans, random)
    runs = np.stack([kept, dropped], axis=1).ravel()
    return np.repeat(np.arange(runs.size) % 2 == 1, runs)


def _segments(items: int, segments: int, random: np.random.RandomState) -> np.ndarray:
    """`items` cut into `segments` non-empty runs: their lengths."""
    cuts = np.sort(random.permutation(items - 1)[: segments - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [items]]))


def corrupt_spans(tokens_L: np.ndarray, noise_L: np.ndarray, sentinels: Sequence[int], eos: int) -> Pair:
    """Drop the noise: the k-th dropped run becomes sentinel k in the inputs, and follows sentinel k in the targets.

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
    """A window read up to a random point and written from there; 1 to `longest_target` tokens are written.

    Prefix language modelling for an encoder and a decoder (arXiv 1910.10683, section 3.2.3).
    """
    target = int(random.randint(1, min(longest_target, len(tokens_L) - 1) + 1))
    return Pair(
        np.append(tokens_L[:-target], eos).astype(np.int64), np.append(tokens_L[-target:], eos).astype(np.int64)
    )


def prefix_loss_mask(length: int, random: np.random.RandomState) -> np.ndarray:
    """Which labels of a decoder-only sample count, float32 [L]: those after a random point, at least one.

    Attention stays causal; only the loss knows of the prefix.
    """
    return (np.arange(length) >= random.randint(0, length)).astype(np.float32)
