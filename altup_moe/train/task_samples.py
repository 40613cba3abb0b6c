"""A task's examples as training samples: shuffled anew every epoch by the seed, so that a number alone says which."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from altup_moe.config import ConfigError, ModelConfig
from altup_moe.data.objectives import sample_generator
from altup_moe.data.recipes import layout_of
from altup_moe.data.tasks.fit import Room, check_classes, count_cut, cut_between, fitted, fitting
from altup_moe.data.tasks.records import Example, Task
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.train.samples import as_tensors


class TaskSamples:
    """Examples by number, padded to the model's lengths; number n is in epoch n // len.

    An encoder reads the inputs and a decoder writes the targets; a decoder alone has both in one sequence, the end
    token between them, and learns the targets. Passages are cut to what fits (`data.tasks.fit`); examples that do not
    fit even so are left out.

    Raises:
        ConfigError: the tokenizer has more tokens than the model, a class has a name that the model cannot write, or no
            example fits.
    """

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        model: ModelConfig,
        seed: int,
        shuffled: bool,
    ) -> None:
        if tokenizer.vocab_size > model.vocab_size:
            fits = f"the tokenizer in {tokenizer.directory} has {tokenizer.vocab_size} tokens; set at least that"
            raise ConfigError("model.vocab_size", model.vocab_size, fits)
        check_classes(task, tokenizer, model)
        self.room = Room.of(model)
        self.examples = fitting(examples, tokenizer, self.room)
        if not self.examples:
            fits = f"of {len(examples):,} examples of {task.name} none fits, its passages left out; a longer one would"
            raise ConfigError("model.seq_length", model.seq_length, fits)
        self.left_out = len(examples) - len(self.examples)
        self.tokenizer, self.layout = tokenizer, layout_of(model, tokenizer)
        self.seed, self.shuffled = seed, shuffled
        self._epoch, self._order = -1, np.arange(len(self.examples))

    def cut(self) -> int:
        """How many examples are cut. Tokenises those that may be."""
        return count_cut(self.examples, self.tokenizer, self.room)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        epoch, at = divmod(number, len(self.examples))
        if self.shuffled and epoch != self._epoch:
            self._epoch, self._order = epoch, sample_generator(self.seed, epoch).permutation(len(self.examples))
        example = self.examples[int(self._order[at])]
        pair = fitted(example, self.tokenizer, self.room)
        assert pair is not None
        return as_tensors(self.layout(pair))


def examples_sha256(examples: Sequence[Example], room: Room) -> str:
    """Hex sha256 of the texts in order, and of how they are cut: what a task was trained on."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.inputs.encode() + b"\0" + example.targets.encode() + b"\0")
    if cut_between(examples, room):
        digest.update(b"passages are cut")
    return digest.hexdigest()
