"""`altup-moe evaluate RUN --tasks ...`: metrics of generated answers beside those of the most frequent one."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from altup_moe.config.data_checks import task_directories
from altup_moe.config.files import write_text
from altup_moe.data.prepare import data_cache
from altup_moe.data.tasks.fit import check_classes
from altup_moe.data.tasks.registry import TASKS, load_task
from altup_moe.inference.answers import Score, answers, compared
from altup_moe.inference.load_run import load_run


def evaluate_tasks_command(
    run_dir: Path,
    tasks: Sequence[str],
    limit: int | None,
    files: dict[str, Path],
    batch_size: int,
    as_json: bool,
    answers_file: Path | None = None,
) -> int:
    """Print the scores of a run's newest checkpoint on validation splits.

    Args:
        limit: examples of each task that are scored, the first ones; None is all.
        files: directories of local data by task, before those of the run's own data.task_files.
        answers_file: also gets a JSON line an example: its task, the answer, and what metrics compare it with.
    """
    run = load_run(run_dir)
    known = {**task_directories(run.config.data.task_files), **files}
    scores, lines = [], []
    for name in tasks:
        check_classes(TASKS[name], run.tokenizer, run.config.model)
        loaded = load_task(TASKS[name], "validation", known, data_cache(run.config))
        scored = [example for example in loaded.examples if example.evaluates]
        if limit is not None and limit > len(scored):
            print(f"limit={limit}: {name} has {len(scored)} examples; all are answered", file=sys.stderr, flush=True)
        scored = scored[:limit]
        found = answers(run, scored, batch_size)
        one = compared(TASKS[name], scored, found.texts)
        scores.append(replace(one, cut=found.cut, unread=found.unread, unlabelled=loaded.unlabelled))
        for text, example in zip(found.texts, scored, strict=True):
            lines.append(json.dumps({"task": name, "answer": text, "reference": example.reference}) + "\n")
        if not as_json:
            print(line(scores[-1]), flush=True)
    if answers_file is not None:
        write_text(answers_file, "".join(lines))
    if as_json:
        print(json.dumps({"run": str(run_dir), "step": run.step, "tasks": [vars(one) for one in scores]}))
    return 0


def line(one: Score) -> str:
    """A score in one line, and what was cut or left out in a second."""
    figures = ", ".join(f"{name} {value:.1f} ({one.majority[name]:.1f})" for name, value in one.metrics.items())
    counts = {
        f"{one.cut:,} passages cut to what the model reads": one.cut,
        f"{one.unread:,} examples too long even without their passage, counted as wrong": one.unread,
        f"{one.unlabelled:,} rows without a label left out": one.unlabelled,
    }
    notes = "; ".join(text for text, count in counts.items() if count)
    return f"{one.task}: {figures} | {one.examples:,} examples | in brackets: always {one.majority_answer!r}" + (
        f"\n  {notes}" if notes else ""
    )
