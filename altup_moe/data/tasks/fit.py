"""Fit examples to a model's lengths: passages are cut at their ends; questions, choices and answers never are."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from altup_moe.config import ConfigError, ModelConfig
from altup_moe.data.objectives import Pair
from altup_moe.data.tasks.records import Example, Span, Task
from altup_moe.data.tokenizer import Tokenizer

_SEAM = 8
"""Tokens by which a text and its two parts may differ in number: at most one word is spelled otherwise."""


@dataclass(frozen=True)
class Room:
    """Tokens that a model has for an example, end tokens counted.

    Args:
        sequence: tokens of the encoder, or of a decoder that has inputs and targets in one sequence.
        decoder: tokens of an encoder-decoder's decoder, else None.
    """

    sequence: int
    decoder: int | None

    @classmethod
    def of(cls, model: ModelConfig) -> Room:
        """The room that a model has."""
        return cls(model.seq_length, model.decoder_length if model.encoder_decoder else None)

    @property
    def targets(self) -> int:
        """For targets."""
        return self.sequence if self.decoder is None else self.decoder

    def inputs(self, targets: int) -> int:
        """For inputs beside so many tokens of targets. (A sequence's last token is predicted and not read.)"""
        return self.sequence if self.decoder is not None else self.sequence + 1 - targets


def encoded(example: Example, tokenizer: Tokenizer) -> Pair:
    """An example in tokens, whole. Text that the tokenizer cannot spell becomes its unknown token."""
    return Pair(np.array(tokenizer.document(tokenizer.encode(example.inputs))), _ids(example.targets, tokenizer))


def fitted(example: Example, tokenizer: Tokenizer, room: Room) -> Pair | None:
    """An example in tokens, its passages cut as far as needed. None if it does not fit even without them."""
    targets = _ids(example.targets, tokenizer)
    inputs = fitted_inputs(example, tokenizer, room.inputs(len(targets))) if len(targets) <= room.targets else None
    return None if inputs is None else Pair(inputs, targets)


def fitted_inputs(example: Example, tokenizer: Tokenizer, room: int) -> np.ndarray | None:
    """Input ids and what stands around them, at most `room` in all: the longest passage is cut at its end as needed.

    Returns:
        [at most `room`] int64; None if they do not fit even without the passages.
    """
    ids, places = tokenizer.encode_with_places(example.inputs)
    surplus = len(tokenizer.document(ids)) - room
    if surplus > 0:
        # A token belongs to where its last character is: the space before a word is often part of it.
        parts = [
            [n for n, (first, end) in enumerate(places) if max(first, start) < end <= stop]
            for start, stop in _passages(example)
        ]
        if surplus > sum(len(part) for part in parts):
            return None
        kept = _shortened([len(part) for part in parts], surplus)
        dropped = {n for part, length in zip(parts, kept, strict=True) for n in part[length:]}
        ids = [token for n, token in enumerate(ids) if n not in dropped]
    return np.array(tokenizer.document(ids))


def fitting(examples: Sequence[Example], tokenizer: Tokenizer, room: Room) -> list[Example]:
    """The examples that fit once their passages are cut; only what may be too long is tokenised."""
    start = len(tokenizer.document_start)
    return [example for example in examples if _surely_fits(example, room, start) or fitted(example, tokenizer, room)]


def count_cut(examples: Sequence[Example], tokenizer: Tokenizer, room: Room) -> int:
    """How many of the examples are too long as they are.

    A passage is often that of many questions: it is tokenised once, and the whole only where the sum is near the room.
    """
    start = len(tokenizer.document_start)
    long = [e for e in examples if start + tokens_at_most(e.inputs) > room.inputs(tokens_at_most(e.targets))]
    distinct = list(dict.fromkeys(text for e in long for text in (*_parts(e), e.targets)))
    tokens = dict(zip(distinct, map(len, tokenizer.encode_batch(distinct)), strict=True))
    count = 0
    for e in long:
        parts = _parts(e)
        end = len(_targets([], tokenizer))
        inputs = sum(tokens[text] for text in parts) + len(tokenizer.document([]))
        surplus = inputs - room.inputs(tokens[e.targets] + end)
        if abs(surplus) <= _SEAM * len(parts):
            surplus += len(tokenizer.encode(e.inputs)) - sum(tokens[text] for text in parts)
        count += surplus > 0
    return count


def cut_between(examples: Sequence[Example], room: Room) -> bool:
    """Whether a cut may leave something behind the passage: earlier versions cut the end of the inputs instead."""
    return any(
        _passages(e)[-1:] != ((_passages(e)[0][0], len(e.inputs)),)
        and tokens_at_most(e.inputs) > room.inputs(tokens_at_most(e.targets))
        for e in examples
        if _passages(e)
    )


def check_classes(task: Task, tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Raise ConfigError if the name of a class has more tokens than the model can write, or cannot be spelled."""
    room, spelled = Room.of(model), {name: _ids(name, tokenizer) for name in task.classes}
    for name, ids in sorted(spelled.items(), key=lambda item: -len(item[1])):
        if len(ids) > room.targets:
            key = "model.seq_length" if room.decoder is None else "model.decoder_seq_length"
            fits = f"{task.name} answers {name!r}, {len(ids)} tokens with the end token; at least that would fit"
            raise ConfigError(key, room.targets, fits)
        if (text := tokenizer.decode(ids[:-1].tolist())).strip() != name:
            fits = f"it spells {task.name}'s answer {name!r} as {text!r}; another tokenizer would fit"
            raise ConfigError("data.tokenizer", str(tokenizer.directory), fits)


def tokens_at_most(text: str) -> int:
    """A bound of a text's tokens with the end token, without tokenising: no token stands for less than a byte.

    Normalisation may take a character apart; a tokenizer may put a space before the text.
    """
    whole = text if text.isascii() else unicodedata.normalize("NFKD", text)
    return max(len(text.encode()), len(whole.encode())) + 2


def _surely_fits(example: Example, room: Room, start: int) -> bool:
    """Without tokenising; ``start``: tokens that inputs begin with."""
    targets = tokens_at_most(example.targets)
    if targets > room.targets:
        return False
    fixed = "".join(_parts(example)[::2])
    return start + tokens_at_most(fixed) <= room.inputs(targets)


def _parts(example: Example) -> list[str]:
    """What may not be cut and what may, in turns."""
    edges = [0, *(edge for span in _passages(example) for edge in span), len(example.inputs)]
    return [example.inputs[start:stop] for start, stop in pairwise(edges)]


def _passages(example: Example) -> tuple[Span, ...]:
    return ((0, len(example.inputs)),) if example.passages is None else example.passages


def _shortened(lengths: list[int], surplus: int) -> list[int]:
    """The lengths, the longest one (of equals the last) made one shorter, `surplus` times."""
    lengths = list(lengths)
    for _ in range(surplus):
        lengths[max(range(len(lengths)), key=lambda n: (lengths[n], n))] -= 1
    return lengths


def _ids(text: str, tokenizer: Tokenizer) -> np.ndarray:
    return _targets(tokenizer.encode(text), tokenizer)


def _targets(ids: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """The ids of a target and the end token."""
    return np.array([*ids, tokenizer.eod])
