"""Every task from its rows to its figures, against the official definitions (`tests/unit/data/tasks/official.py`).

Random rows with random answers go through a file, the tokenizer, the arrays of training, batches of generation and the
metrics: what is read, what is to be written and what an answer scores are the benchmark's, invalid answers included.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from altup_moe.data.tasks.registry import TASKS, load_task
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.answers import answers, compared
from altup_moe.inference.load_run import FinishedRun
from altup_moe.train.task_samples import TaskSamples
from tests.unit.data.tasks import official
from tests.unit.data.tasks.random_rows import LabelledRow, expected_inputs, labelled_rows
from tests.unit.train.runs import tiny

TOGETHER = 10
CONFIGS = {
    True: tiny(model={"arch": "t5", "seq_length": 512, "decoder_seq_length": 128}),
    False: tiny(model={"seq_length": 640}),
}


class Scripted:
    """A model that has read what it is asked, and gives prepared answers to it."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: Tokenizer, reads: bool, said: list[tuple[str, str]]) -> None:
        self.config = SimpleNamespace(is_encoder_decoder=reads)
        self.tokenizer, self.reads = tokenizer, reads
        self.said: dict[str, list[str]] = defaultdict(list)
        for asked, answer in said:
            self.said[asked].append(answer)

    def generate(self, tokens: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        asked = [row[keep.bool()].tolist() for row, keep in zip(tokens, attention_mask, strict=True)]
        assert all(ids[-1] == self.tokenizer.eod for ids in asked)
        # Equal questions come in the order of their rows.
        texts = [self.said[self.tokenizer.decode(ids[:-1])].pop(0) for ids in asked]
        ids = [[*self.tokenizer.encode(text), self.tokenizer.eod, 9, 8] for text in texts]
        width = max(map(len, ids))
        new = torch.tensor([one + [7] * (width - len(one)) for one in ids])
        return torch.cat([torch.full((len(new), 1), 3) if self.reads else tokens, new], dim=1)


def check(task: str, rows: list[LabelledRow], reads: bool, tokenizer: Tokenizer, directory: Path) -> None:
    """What is read, trained on and scored, against the official definitions."""
    lines = "\n".join(json.dumps(one.row) for one in rows)
    (directory / "validation.jsonl").write_text(lines, encoding="utf-8")
    labelled = [one for one in rows if one.label is not None]
    loaded = load_task(TASKS[task], "validation", {task: directory}, directory)
    assert (loaded.rows, loaded.unlabelled) == (len(rows), len(rows) - len(labelled))
    pairs = [
        (expected_inputs(task, one.row) or example.inputs, target)
        for one, example in zip(labelled, [e for e in loaded.examples if e.evaluates], strict=True)
        for target in official.targets(task, one.row, one.label)
    ]
    assert [(e.inputs, e.targets) for e in loaded.examples] == pairs
    config = CONFIGS[reads]
    if trained := [e for e in loaded.examples if e.trains]:
        samples = TaskSamples(TASKS[task], trained, tokenizer, config.model, 1, shuffled=False)
        assert (samples.left_out, samples.cut()) == (0, 0)
        kept = [pair for pair, e in zip(pairs, loaded.examples, strict=True) if e.trains]
        assert [read_back(samples[n], tokenizer) for n in range(len(samples))] == kept
    scored = [example for example in loaded.examples if example.evaluates]
    said = [(example.inputs, one.answer) for example, one in zip(scored, labelled, strict=True)]
    run = FinishedRun(config, Scripted(tokenizer, reads, said), tokenizer, 1)  # type: ignore[arg-type]
    found = answers(run, scored, 4)
    assert (found.texts, found.cut, found.unread) == ([one.answer for one in labelled], 0, 0)
    figures = compared(TASKS[task], scored, found.texts)
    columns = [one.row for one in labelled], [one.label for one in labelled]
    assert figures.metrics == pytest.approx(official.scores(task, *columns, found.texts), abs=1e-9)
    usual = [figures.majority_answer] * len(labelled)
    assert figures.majority == pytest.approx(official.scores(task, *columns, usual), abs=1e-9)


def read_back(sample: dict[str, torch.Tensor], tokenizer: Tokenizer) -> tuple[str, str]:
    """Inputs and targets of a training sample."""
    learned = sample["labels"][sample["loss_mask"].bool()].tolist()
    if "encoder_mask" in sample:
        read = sample["encoder_tokens"][sample["encoder_mask"].bool()].tolist()
    else:
        read = sample["tokens"][: int(sample["loss_mask"].argmax()) + 1].tolist()
    assert read[-1] == learned[-1] == tokenizer.eod
    return tokenizer.decode(read[:-1]), tokenizer.decode(learned[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.long)])
@pytest.mark.parametrize("task", TASKS)
def test_random_rows_are_read_and_scored_as_officially(task: str, count: int, bpe: Tokenizer, tmp_path: Path) -> None:
    seen = 0

    # Ten rows are read soon enough: shrinking them would take minutes.
    @settings(max_examples=count // TOGETHER, phases=[Phase.generate])
    @given(st.lists(labelled_rows(task), min_size=TOGETHER, max_size=TOGETHER), st.booleans())
    def checked(rows: list[LabelledRow], reads: bool) -> None:
        nonlocal seen
        if all(one.label is None for one in rows):
            return
        check(task, rows, reads, bpe, tmp_path)
        seen += len(rows)

    checked()
    assert seen >= 0.9 * count
