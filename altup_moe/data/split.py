"""Split a corpus into training and validation: by whole documents, or where that fails within a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from altup_moe.config.errors import ConfigError

_KEY = "data.valid_fraction"
_TOO_FAR = 2.0
"""Factor by which the share of whole documents may miss the fraction; beyond it a document is cut."""


@dataclass(frozen=True)
class TextPart:
    """Some tokens of a token file: documents, or parts of them, by number. All arrays are int64 [N].

    Args:
        documents: ascending numbers of the documents.
        begins: first token of each that belongs to the part.
        lengths: tokens of each that do, at least 1.
    """

    documents: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of the part."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class TextSplit:
    """A corpus in two. ``summary``: what is held out, in words."""

    train: TextPart
    valid: TextPart
    summary: str


def whole_documents(lengths: Sequence[int] | np.ndarray, documents: np.ndarray | None = None) -> TextPart:
    """The part that some documents (None: all) make up. ``lengths``: [documents of the corpus], in tokens."""
    sizes = np.asarray(lengths, dtype=np.int64)
    numbers = np.arange(len(sizes)) if documents is None else documents.astype(np.int64)
    return TextPart(numbers, np.zeros(len(numbers), np.int64), sizes[numbers])


def split_text(lengths: Sequence[int] | np.ndarray, valid_fraction: float) -> TextSplit:
    """Hold out ``valid_fraction`` of the tokens: whole documents (`split_documents`), or the end of the corpus.

    The end of the corpus is held out, and a document cut for it, where documents are too few or too long: there is only
    one, or whole ones make up less than half or more than twice of the fraction.

    Args:
        lengths: [documents], in tokens.
        valid_fraction: fraction of the tokens to hold out, in (0, 1).

    Raises:
        ConfigError: data.valid_fraction is outside (0, 1), or the corpus has fewer than 3 tokens.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    total = int(sizes.sum())
    if total < 3 and 0.0 < valid_fraction < 1.0:
        raise ConfigError(_KEY, valid_fraction, f"needs at least 3 tokens to split, the corpus has {total}")
    if len(sizes) != 1 or not 0.0 < valid_fraction < 1.0:
        train, valid = split_documents(sizes, valid_fraction)
        share = int(sizes[valid].sum()) / total
        if valid_fraction / _TOO_FAR <= share <= valid_fraction * _TOO_FAR:
            summary = split_summary(sizes, valid)
            return TextSplit(whole_documents(sizes, train), whole_documents(sizes, valid), summary)
    # A label needs the token before it.
    cut = min(total - 2, total - int(valid_fraction * total))
    ends = np.cumsum(sizes)
    starts = ends - sizes
    before, after = np.flatnonzero(starts < cut), np.flatnonzero(ends > cut)
    begins = np.maximum(cut - starts[after], 0)
    train_part = TextPart(before, np.zeros(len(before), np.int64), np.minimum(cut, ends[before]) - starts[before])
    valid_part = TextPart(after, begins, sizes[after] - begins)
    share = valid_part.tokens / total
    summary = (
        f"the last {valid_part.tokens:,} of {total:,} tokens ({share:.1%}) are held out for validation; "
        f"whole documents ({len(sizes):,}) are too few or too long for {valid_fraction:g}"
    )
    return TextSplit(train_part, valid_part, summary)


def split_summary(lengths: Sequence[int] | np.ndarray, valid: np.ndarray) -> str:
    """What whole documents that are held out amount to, in words."""
    sizes = np.asarray(lengths, dtype=np.int64)
    held, total = int(sizes[valid].sum()), int(sizes.sum())
    return (
        f"{len(valid):,} of {len(sizes):,} documents, {held:,} of {total:,} tokens ({held / total:.1%}), "
        "are held out for validation"
    )


def split_documents(lengths: Sequence[int] | np.ndarray, valid_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Hold out whole documents until they carry ``valid_fraction`` of the tokens.

    Documents are visited in the order of a hash of their number, so they are spread over the corpus and the split is
    deterministic. A document that exceeds the remaining tokens is skipped.

    Args:
        lengths: [documents], in tokens.
        valid_fraction: fraction of the tokens to hold out, in (0, 1).

    Returns:
        (train, valid): ascending document numbers, int64, disjoint and complete, neither empty. The validation share
        exceeds the fraction only if the shortest document alone does.

    Raises:
        ConfigError: data.valid_fraction is outside (0, 1), or there are fewer than two documents.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not 0.0 < valid_fraction < 1.0:
        raise ConfigError(_KEY, valid_fraction, "must lie between 0 and 1, both excluded")
    if len(sizes) < 2:
        fits = f"needs at least 2 documents to split, the corpus has {len(sizes)}"
        raise ConfigError(_KEY, valid_fraction, fits)
    left, shortest = int(valid_fraction * int(sizes.sum())), int(sizes.min())
    held: list[int] = []
    for number in np.argsort(_mix(len(sizes)), kind="stable"):
        if left < shortest or len(held) == len(sizes) - 1:
            break
        if sizes[number] <= left:
            held.append(int(number))
            left -= int(sizes[number])
    valid = np.array(sorted(held) or [int(np.argmin(sizes))], dtype=np.int64)
    return np.setdiff1d(np.arange(len(sizes)), valid), valid


def _mix(count: int) -> np.ndarray:
    """splitmix64's finaliser of 0..count-1 (Steele et al., OOPSLA 2014): an order that no numpy release can change."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
