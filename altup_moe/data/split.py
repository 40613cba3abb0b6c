"""Split documents into training and validation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from altup_moe.config.errors import ConfigError

_KEY = "data.valid_fraction"


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
