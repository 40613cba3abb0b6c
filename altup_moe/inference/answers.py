"""What a finished run answers to the examples of a task, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from altup_moe.config import UserError
from altup_moe.data.layouts import shortened
from altup_moe.data.tasks.records import Example, Task
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.load_run import FinishedRun
from altup_moe.train.task_samples import encoded


@dataclass(frozen=True)
class Score:
    """A task's metrics in percent: the run's, and those of always giving the most frequent target."""

    task: str
    examples: int
    metrics: dict[str, float]
    majority: dict[str, float]
    majority_answer: str


def score(run: FinishedRun, task: Task, examples: Sequence[Example], batch_size: int) -> Score:
    """Generate an answer to every example that is scored, and compare."""
    scored = [example for example in examples if example.evaluates]
    return compared(task, scored, answers(run, scored, batch_size))


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


@torch.no_grad()
def answers(run: FinishedRun, examples: Sequence[Example], batch_size: int) -> list[str]:
    """Greedy answers, in the order of the examples, at most as long as the longest target.

    Examples of like length share a batch. Inputs are cut as in training.

    Raises:
        UserError: inputs and answer do not fit into model.seq_length at all.
    """
    m, reads = run.config.model, bool(getattr(run.model.config, "is_encoder_decoder", False))
    pairs = [encoded(example, run.tokenizer) for example in examples]
    longest = max(len(pair.targets) for pair in pairs)
    room = m.decoder_length if reads else m.seq_length - 1
    new = min(longest, room)
    inputs = [shortened(pair.inputs, m.seq_length if reads else max(1, m.seq_length + 1 - new)) for pair in pairs]
    if new < 1:
        raise UserError(f"model.seq_length {m.seq_length} has no room for an answer")
    texts = [""] * len(examples)
    order = np.argsort([len(ids) for ids in inputs], kind="stable")
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        written = _generate(run, [inputs[n] for n in numbers], new, reads)
        for n, ids in zip(numbers, written, strict=True):
            texts[n] = run.tokenizer.decode(_until_end(ids, run.tokenizer))
    return texts


def _generate(run: FinishedRun, inputs: Sequence[np.ndarray], new: int, reads: bool) -> list[list[int]]:
    """New token ids of each; a decoder alone goes on from inputs padded on the left."""
    width, pad, device = max(len(ids) for ids in inputs), run.tokenizer.pad_id, run.model.device
    tokens = torch.full((len(inputs), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(inputs):
        place = slice(0, len(ids)) if reads else slice(width - len(ids), width)
        tokens[row, place], mask[row, place] = torch.from_numpy(ids), 1
    arguments: dict[str, Any] = {"attention_mask": mask.to(device), "max_new_tokens": new, "do_sample": False}
    out = run.model.generate(tokens.to(device), **arguments)
    return [row.tolist() for row in out[:, 1 if reads else width :].cpu()]


def _until_end(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return ids[: ids.index(tokenizer.eod)] if tokenizer.eod in ids else ids
