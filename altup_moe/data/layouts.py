"""Convert a pair of inputs and targets to the fixed-length arrays of a model.

Shape suffixes: S tokens of the encoder, or of a decoder-only model; D tokens of the decoder.
"""

from __future__ import annotations

import numpy as np

from altup_moe.data.objectives import Pair

Arrays = dict[str, np.ndarray]
"""`tokens`, `labels`, `loss_mask`, `padding_mask`; with an encoder also `encoder_tokens` and `encoder_mask`."""


def encoder_decoder(pair: Pair, encoder_length: int, decoder_length: int, pad: int, start: int | None = None) -> Arrays:
    """Arrays for an encoder-decoder: inputs to the encoder, targets to the decoder, both padded or shortened.

    Args:
        start: id that the decoder's tokens begin with; None is the pad id, as in T5.

    Returns:
        `encoder_tokens` int64 [S], `encoder_mask` float32 [S] (1 token, 0 padding); `tokens` int64 [D]: the start
        token and the targets without their last; `labels` int64 [D], `loss_mask` float32 [D], `padding_mask` bool [D]
        (True on padding).
    """
    inputs, targets = shortened(pair.inputs, encoder_length), shortened(pair.targets, decoder_length)
    return {
        "encoder_tokens": _padded(inputs, encoder_length, pad),
        "encoder_mask": _ones(len(inputs), encoder_length),
        "tokens": _padded(np.append(pad if start is None else start, targets[:-1]), decoder_length, pad),
        "labels": _padded(targets, decoder_length, pad),
        "loss_mask": _ones(len(targets), decoder_length),
        "padding_mask": _ones(len(targets), decoder_length) == 0,
    }


def decoder_only(pair: Pair, length: int, pad: int) -> Arrays:
    """Inputs and targets in one sequence, with loss on the targets alone. If they are too long, inputs are cut first.

    Returns:
        `tokens`, `labels` int64 [S], `loss_mask` float32 [S] and `padding_mask` bool [S] (True on padding).
    """
    targets = shortened(pair.targets, length)
    inputs = shortened(pair.inputs, length + 1 - len(targets))
    sequence = np.concatenate([inputs, targets])
    used = len(sequence) - 1
    return {
        "tokens": _padded(sequence[:-1], length, pad),
        "labels": _padded(sequence[1:], length, pad),
        "loss_mask": _ones(used, length) - _ones(len(inputs) - 1, length),
        "padding_mask": _ones(used, length) == 0,
    }


def next_tokens(ids: np.ndarray, mask: np.ndarray, length: int, pad: int) -> Arrays:
    """Arrays in which every token but the first is the label of the one before it.

    Args:
        ids: at most length + 1 tokens. mask: [len(ids) - 1], 1 for labels that count.

    Returns:
        `tokens`, `labels` int64 [S] and `loss_mask` float32 [S]; nothing counts in the padding.
    """
    return {
        "tokens": _padded(ids[:-1], length, pad),
        "labels": _padded(ids[1:], length, pad),
        "loss_mask": np.pad(mask, (0, length - len(mask))).astype(np.float32),
    }


def shortened(ids: np.ndarray, length: int) -> np.ndarray:
    """At most `length` ids; the last one (the end token) is kept."""
    return ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1])


def _padded(ids: np.ndarray, length: int, pad: int) -> np.ndarray:
    return np.pad(ids, (0, length - len(ids)), constant_values=pad).astype(np.int64)


def _ones(count: int, length: int) -> np.ndarray:
    return (np.arange(length) < count).astype(np.float32)
