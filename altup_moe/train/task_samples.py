"""A task's examples as training samples: shuffled anew every epoch by the seed, so that a number alone says which."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from altup_moe.config import ConfigError, ModelConfig
from altup_moe.data.objectives import Pair, sample_generator
from altup_moe.data.recipes import layout_of
from altup_moe.data.tasks.records import Example
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.train.samples import as_tensors


class TaskSamples:
    """Examples by number, padded to the model's lengths; number n is in epoch n // len.

    An encoder reads the inputs and a decoder writes the targets; a decoder alone has both in one sequence, the end
    token between them, and learns the targets.
    """

    def __init__(
        self, examples: Sequence[Example], tokenizer: Tokenizer, model: ModelConfig, seed: int, shuffled: bool
    ) -> None:
        if tokenizer.vocab_size > model.vocab_size:
            fits = f"the tokenizer in {tokenizer.directory} has {tokenizer.vocab_size} tokens; set at least that"
            raise ConfigError("model.vocab_size", model.vocab_size, fits)
        self.examples, self.tokenizer, self.layout = examples, tokenizer, layout_of(model, tokenizer)
        self.seed, self.shuffled = seed, shuffled
        self._epoch, self._order = -1, np.arange(len(examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        epoch, at = divmod(number, len(self.examples))
        if self.shuffled and epoch != self._epoch:
            self._epoch, self._order = epoch, sample_generator(self.seed, epoch).permutation(len(self.examples))
        example = self.examples[int(self._order[at])]
        return as_tensors(self.layout(encoded(example, self.tokenizer)))


def encoded(example: Example, tokenizer: Tokenizer) -> Pair:
    """An example in tokens. Text that the tokenizer cannot spell becomes its unknown token."""
    inputs, targets = (np.array([*tokenizer.encode(text), tokenizer.eod]) for text in (example.inputs, example.targets))
    return Pair(inputs, targets)


def examples_sha256(examples: Sequence[Example]) -> str:
    """Hex sha256 of the texts in order: what a task was trained on."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.inputs.encode() + b"\0" + example.targets.encode() + b"\0")
    return digest.hexdigest()
