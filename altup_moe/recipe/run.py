"""Run the stages of a recipe as jobs of the study's pool (`study.job_pool`); finished stages are not repeated.

Every stage is a command of `altup-moe` that could be given by hand: its configuration lies beside its run directory,
what it prints in a log. A stage that was cut goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from altup_moe.checkpoint.store import latest_checkpoint, step_name
from altup_moe.config import RunConfig, UserError
from altup_moe.config.exit_codes import EXIT_STOPPED, EXIT_USER_ERROR
from altup_moe.config.files import write_text
from altup_moe.config.load import save_config
from altup_moe.config.metrics_lines import read_metrics
from altup_moe.config.run_directory import metrics_file
from altup_moe.parallel.start_ranks import last_line
from altup_moe.recipe.recipe import ARMS, TUNED, PaperRecipe
from altup_moe.study.job_pool import Job, JobPool, StoppedBySignal, noted_signals

ANSWERS = "answers.jsonl"
IDENTITY = "recipe.json"


class StageFailed(Exception):
    """A stage ended with an exit code that is no mistake of the user's."""


def stages(recipe: PaperRecipe) -> list[Job]:
    """All stages: pretrain, fine-tune, answer; and the control, which fine-tunes from random weights and answers.

    Each comes after the one that it starts from. The longer arm stands first.
    """
    return [stage for arm in ARMS for seed in recipe.seeds for stage in _stages_of(recipe, seed, arm)]


def claim(recipe: PaperRecipe) -> None:
    """Claim the run directory for this recipe, and write the configuration of every stage into it.

    Raises:
        UserError: it holds another recipe's results; nothing is written.
    """
    file, ours = recipe.run_dir / IDENTITY, recipe.identity()
    if file.is_file():
        try:
            theirs = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"{file}: is not JSON ({error}); remove {recipe.run_dir}, or name another --run_dir"
            ) from None
        if differing := _first_difference(theirs, json.loads(json.dumps(ours))):
            raise UserError(f"{recipe.run_dir} holds another recipe's runs ({differing}); name another --run_dir")
    recipe.run_dir.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(ours, indent=1) + "\n")
    for _, config in recipe.configs():
        save_config(config, _config_file(config))


def run_stages(stages: Sequence[Job], jobs: int, say: Callable[[str], None]) -> None:
    """Run the stages that are not done, at most `jobs` at a time. The first failure stops the others, which save.

    Args:
        say: told each stage's name with its seconds, or that it was done before.
    Raises:
        UserError: a stage ended with exit code 2 (its own line).
        StageFailed: a stage ended with another one, or without its result.
        StoppedBySignal: a signal came, to this process or to a stage.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(threads_each(jobs)))
    timed = [replace(stage, environment={"OMP_NUM_THREADS": threads}) for stage in stages]
    with noted_signals() as signals:
        # A stage's threads are its share of the cores: as many stages fit as there are jobs.
        JobPool(signals).run(timed, jobs, jobs, _Stages(say))


@dataclass(frozen=True)
class _Stages:
    """Hears of each stage (`JobObserver`)."""

    say: Callable[[str], None]

    def ended(self, job: Job, code: int | None, seconds: float) -> str | None:
        if code is None:
            self.say(f"{job.name}: done before")
            return None
        if code == EXIT_USER_ERROR:
            raise UserError(f"{job.name}: {last_line(job.log).removeprefix('altup-moe: error: ')}")
        if code == EXIT_STOPPED:
            raise StoppedBySignal
        if code or not job.done():
            how = f"exit code {code}" if code else "exit code 0 and no result"
            raise StageFailed(f"{job.name} ended with {how}; {job.log} says why")
        self.say(f"{job.name}: {seconds:.0f} s")
        return None

    def blocked(self, job: Job, failed: str, reason: str) -> None:
        raise AssertionError(f"{job.name} waits for {failed}, whose failure has ended the recipe")


def answers_of(recipe: PaperRecipe, seed: int, arm: str) -> tuple[list[str], list[list[str]]]:
    """Read the answers of a finished evaluation, and the accepted answers. Raises UserError if the file is damaged."""
    file = recipe.directory(seed, arm) / ANSWERS
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [row["answer"] for row in rows], [row["reference"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it to have the questions answered again") from None


def train_seconds(run_dir: Path) -> float:
    """Seconds of all steps of a run, without validation and start."""
    return sum(line["step_seconds"] for line in read_metrics(metrics_file(run_dir)))


def valid_loss(run_dir: Path) -> float:
    """Loss of a finished run after its last step, nats a token on held-out samples. Raises UserError without one."""
    file = metrics_file(run_dir)
    last = max(read_metrics(file), key=lambda line: line["step"], default={})
    if last.get("valid_loss") is None:
        raise UserError(f"{file}: its last line has no valid_loss; remove {run_dir} to have the stage done again")
    return float(last["valid_loss"])


def threads_each(jobs: int) -> int:
    """Threads of a process if `jobs` processes share the cores of this one."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def _stages_of(recipe: PaperRecipe, seed: int, arm: str) -> list[Job]:
    tuning = recipe.tuning(seed, arm)
    how = "fine-tune" if arm == TUNED else "fine-tune from random weights"
    before = [_training(f"seed {seed}: pretrain", recipe.pretrained(seed))] if arm == TUNED else []
    steps = [""] if len(tuning) == 1 else [f", step {number}" for number in range(1, len(tuning) + 1)]
    chain = [
        *before,
        *(_training(f"seed {seed}: {how}{step}", config) for step, config in zip(steps, tuning, strict=True)),
        _evaluation(recipe, f"seed {seed}: evaluate {arm}", tuning[-1]),
    ]
    return [chain[0], *(replace(job, after=(previous.name,)) for previous, job in pairwise(chain))]


def _training(name: str, config: RunConfig) -> Job:
    run_dir, last = Path(config.log.run_dir), step_name(config.train.steps)
    command = _command("train", str(_config_file(config)))
    return Job(name, command, run_dir.with_suffix(".log"), lambda: (latest_checkpoint(run_dir) or run_dir).name == last)


def _evaluation(recipe: PaperRecipe, name: str, config: RunConfig) -> Job:
    run_dir, e = Path(config.log.run_dir), recipe.evaluate
    options = ["--tasks", e.task, "--batch_size", str(e.batch_size), "--answers", str(run_dir / ANSWERS)]
    limit = [] if e.limit is None else ["--limit", str(e.limit)]
    command = _command("evaluate", str(run_dir), *options, *limit)
    return Job(name, command, run_dir.with_suffix(".log"), (run_dir / ANSWERS).is_file)


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "altup_moe.cli", *arguments)


def _config_file(config: RunConfig) -> Path:
    return Path(config.log.run_dir).with_suffix(".yaml")


def _first_difference(theirs: object, ours: object, key: str = "") -> str | None:
    """Dotted key of the first value that differs, with both values; None if none does."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inside = (_first_difference(theirs.get(k), ours.get(k), f"{key}.{k}".lstrip(".")) for k in {**theirs, **ours})
        return next((found for found in inside if found), None)
    return None if theirs == ours else f"{key} was {theirs!r}, is {ours!r}"
