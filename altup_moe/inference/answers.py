"""What a finished run answers to the examples of a task, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import numpy as np
import torch

from altup_moe.config import ConfigError, ModelConfig
from altup_moe.data.tasks.fit import Room, encoded, fitted_inputs
from altup_moe.data.tasks.records import Example, Task
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.generate import GREEDY, generated_ids
from altup_moe.inference.load_run import FinishedRun


@dataclass(frozen=True)
class Score:
    """A task's metrics in percent: the run's, and those of always giving the most frequent target.

    Args:
        cut: examples whose passage was cut to what the model can read.
        unread: examples that do not fit even without their passage: never asked, and wrong.
        unlabelled: rows without a label, which are no examples.
    """

    task: str
    examples: int
    metrics: dict[str, float]
    majority: dict[str, float]
    majority_answer: str
    cut: int = 0
    unread: int = 0
    unlabelled: int = 0


@dataclass(frozen=True)
class Answers:
    """Texts in the order of the examples; an example that could not be read has an empty one. Counts as in `Score`."""

    texts: list[str]
    cut: int
    unread: int


def score(run: FinishedRun, task: Task, examples: Sequence[Example], batch_size: int) -> Score:
    """Generate an answer to every example that is scored, and compare."""
    scored = [example for example in examples if example.evaluates]
    found = answers(run, scored, batch_size)
    return replace(compared(task, scored, found.texts), cut=found.cut, unread=found.unread)


def compared(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> Score:
    """How well the texts answer the examples, in the same order."""
    references = [example.reference for example in examples]
    (usual, _), *_ = Counter(example.targets for example in examples).most_common(1)
    return Score(
        task.name,
        len(examples),
        task.metrics([task.answer(text) for text in texts], references),
        task.metrics([task.answer(usual)] * len(examples), references),
        usual,
    )


@dataclass(frozen=True)
class Questions:
    """Examples in tokens. ``inputs``: ids by number of the example, of those that fit; ``new``: tokens of the longest
    target; ``cut``: number of examples whose passage was cut."""

    inputs: dict[int, np.ndarray]
    new: int
    cut: int


def questions(examples: Sequence[Example], tokenizer: Tokenizer, model: ModelConfig) -> Questions:
    """Passages are cut as in training, here so that the longest target has room.

    Raises:
        ConfigError: no example fits into model.seq_length.
    """
    room = Room.of(model)
    pairs = [encoded(example, tokenizer) for example in examples]
    new = min(max(len(pair.targets) for pair in pairs), room.targets)
    fitted = [fitted_inputs(example, tokenizer, room.inputs(new)) for example in examples]
    inputs = {n: ids for n, ids in enumerate(fitted) if ids is not None}
    if not inputs:
        fits = f"none of {len(examples):,} examples fits beside an answer of {new} tokens"
        raise ConfigError("model.seq_length", model.seq_length, fits)
    return Questions(inputs, new, sum(len(ids) < len(pairs[n].inputs) for n, ids in inputs.items()))


@torch.no_grad()
def answers(
    run: FinishedRun,
    examples: Sequence[Example],
    batch_size: int,
    after_batch: Callable[[], None] = lambda: None,
) -> Answers:
    """Greedy answers, at most as long as the longest target. Examples of like length share a batch.

    Args:
        after_batch: called after each batch; what it raises ends the work.
    Raises:
        ConfigError: no example fits into model.seq_length.
    """
    asked = questions(examples, run.tokenizer, run.config.model)
    inputs, new = asked.inputs, asked.new
    texts, order = [""] * len(examples), sorted(inputs, key=lambda n: len(inputs[n]))
    ends = {*run.end_ids, run.tokenizer.eod}
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        written = generated_ids(run, [inputs[n].tolist() for n in numbers], new, GREEDY)
        for n, ids in zip(numbers, written, strict=True):
            texts[n] = run.tokenizer.decode(list(takewhile(lambda i: i not in ends, ids)))
        after_batch()
    return Answers(texts, asked.cut, len(examples) - len(inputs))
