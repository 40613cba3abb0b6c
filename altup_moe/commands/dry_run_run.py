"""Sections of a dry run that look at the disk: data, what is resumed, and what is there at the end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.store import step_name
from altup_moe.commands.dry_run_section import Section
from altup_moe.config import RunConfig
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.config.locks import LOCK, unread
from altup_moe.data.found import FoundData
from altup_moe.data.prepare import data_cache
from altup_moe.moe.backends import unavailable_overlap
from altup_moe.train.preflight import checkpoint_bytes, existing_directory
from altup_moe.train.resume import ResumePoint
from altup_moe.train.start_notes import resume_notes, run_notes


def data_section(config: RunConfig, data: Sequence[FoundData], damaged: str | None) -> Section:
    """Each corpus and task: what lies there, or what a run does first."""
    lines = [line for one in data for line in _found_lines(config, one, alone=len(data) == 1)]
    if damaged:
        lines.append(f"refused: {damaged}")
    figures = {"found": [asdict(one) for one in data], "refused": damaged, "epochs": _epochs(config, data)}
    return Section("data", lines, figures)


def _found_lines(config: RunConfig, one: FoundData, alone: bool) -> list[str]:
    name = f"{one.name}, weight {one.weight}" if one.weight else one.name
    if one.tokens is None:
        *others, last = one.first
        first = f"{', '.join(others)} and {last}" if others else last
        return [f"{name}: the run first {first} (in {data_cache(config)})"]
    lines = [
        f"{name}: {one.documents:,} documents, {one.tokens:,} tokens, vocabulary {one.vocabulary:,} ({one.prefix})"
    ]
    lines.append(one.held_out)
    if one.train_samples is not None:
        epochs = _epochs(config, [one]) if alone else None
        read = "" if epochs is None else f"; the run reads them {epochs:.2f} times"
        lines.append(f"{one.train_samples:,} training samples{read}; {one.valid_samples:,} for validation")
    return lines


def _epochs(config: RunConfig, data: Sequence[FoundData]) -> float | None:
    """How often the run reads its only corpus; None for a mixture, or where that is not known yet."""
    if len(data) != 1 or not data[0].train_samples:
        return None
    return config.train.steps * config.train.global_batch_size / data[0].train_samples


def resume_section(
    config: RunConfig, ranks: int, point: ResumePoint | None, refused: str | None, note: str | None
) -> Section:
    """From which step and weights the run starts, and what it changes there; `note` is one more line."""
    run_dir = Path(config.log.run_dir)
    figures: dict[str, Any] = {"run_dir": str(run_dir), "exists": run_dir.is_dir(), "refused": refused}
    figures |= {"checkpoint": None, "step": 0, "weights_only": False, "changes": {}}
    lines = [f"refused: {refused}"] if refused else []
    if point is None and not refused:
        there = "it holds no checkpoint" if run_dir.is_dir() else "it does not exist yet"
        lines = [f"the run starts anew in {run_dir}; {there}", *([note] if note else [])]
    elif point is not None:
        step, weights = point.manifest.step, point.weights_only
        figures |= {"checkpoint": str(point.directory), "step": 0 if weights else step, "weights_only": weights}
        figures |= {"changes": {key: list(values) for key, values in point.changes.items()}}
        if weights:
            lines = [f"a new run in {run_dir}, with the weights of {point.directory} (step {step})"]
        elif point.branched:
            lines = [f"a new run in {run_dir} that branches off step {step} of {point.directory}"]
        else:
            lines = [f"the run in {run_dir} goes on from step {step} ({point.directory.name})"]
        lines += resume_notes(config, point, ranks)
    if (run_dir / LOCK).is_file() and not unread(run_dir / LOCK):
        lines.append(f"another training runs in {run_dir} now: wait for it, or name another log.run_dir")
    return Section("resume", lines, figures)


def end_section(config: RunConfig, data: Sequence[FoundData], point: ResumePoint | None) -> Section:
    """The last step, what is saved, and remarks that the run makes at its start."""
    t, c, log = config.train, config.checkpoint, config.log
    last = min(t.steps, t.stop_after or t.steps)
    done = point.manifest.step if point is not None and not point.weights_only else 0
    size = checkpoint_bytes(config)
    held = [one.valid_samples for one in data if one.valid_samples is not None]
    known = len(held) == len(data) > 0
    read = min(t.eval_samples, sum(held)) if known else t.eval_samples
    often = f"every {c.save_interval} steps, the newest {c.keep} kept" if c.save_interval else "at the end alone"
    kept = f", and those of every {c.keep_every} steps" if c.keep_every else ""
    kept += f", and those of steps {', '.join(map(str, c.save_at))}" if c.save_at else ""
    free = shutil.disk_usage(existing_directory(Path(log.run_dir))).free
    generated = (
        [f"{', '.join(t.eval_tasks)} with each validation, {t.eval_task_limit or 'all'} examples"]
        if t.eval_tasks
        else []
    )
    if log.sample_interval is not None:
        generated.append(f"samples every {log.sample_interval} steps and at the end")
    saved = f"checkpoints of about {_size(size)} {often}{kept}; the last one is {step_name(last)}"
    tensorboard = ", tensorboard/" if log.tensorboard else ""
    lines = [
        f"{max(0, last - done):,} step(s) to do, to step {last:,}"
        + (f" of {t.steps:,} (train.stop_after)" if last < t.steps else ""),
        f"validation of {'' if known else 'at most '}{read:,} samples"
        + (f" every {t.eval_interval} steps and" if t.eval_interval else "")
        + " at the end",
        *generated,
        f"{saved}; the disk has {_size(free)} free",
        f"in {log.run_dir}: config.yaml, metrics.jsonl, tokenizer/, checkpoints/{tensorboard}",
        f"exit code 0; {EXIT_STOPPED} after SIGTERM or Ctrl-C, saved: the same command goes on",
    ]
    vocabularies = [one.vocabulary for one in data if one.vocabulary]
    # What is not known yet gives no remark.
    notes = run_notes(
        config,
        sum(held) if known else t.eval_samples,
        max(vocabularies) if known and vocabularies else config.model.vocab_size,
        done + 1,
    )
    shut = unavailable_overlap(config)
    lines += [*notes, *([shut] if shut else [])]
    figures = {"last_step": last, "steps_to_do": max(0, last - done), "validation_samples": read}
    return Section("end", lines, {**figures, "checkpoint_bytes": size, "disk_free_bytes": free, "notes": notes})


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
