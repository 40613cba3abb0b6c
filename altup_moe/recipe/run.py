"""The stages of a recipe as processes, several side by side; what is finished is not done again.

Every stage is a command of `altup-moe` that could be given by hand: its configuration lies beside its run directory,
what it prints in a log. A stage that was cut goes on from its newest checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from altup_moe.checkpoint.store import latest, step_name
from altup_moe.config import RunConfig, UserError
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.config.files import write_text
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import metrics_file
from altup_moe.recipe.recipe import ARMS, TUNED, Recipe

ANSWERS = "answers.jsonl"
IDENTITY = "recipe.json"
USER_ERROR = 2


class Failed(Exception):
    """A stage ended with an exit code that is no mistake of the user's."""


class Stopped(Exception):
    """A signal ended the stages, which have saved."""


@dataclass(frozen=True)
class Stage:
    """One process. ``done``: whether it has been here before and come to its end."""

    name: str
    command: tuple[str, ...]
    log: Path
    done: Callable[[], bool]


def chains(recipe: Recipe) -> list[list[Stage]]:
    """Stages that follow each other; different chains need nothing of each other. The longest first."""
    return [_chain(recipe, seed, arm) for arm in ARMS for seed in recipe.seeds]


def claim(recipe: Recipe) -> None:
    """Make the run directory this recipe's, and write every stage's configuration into it.

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


def run_chains(chains: Sequence[Sequence[Stage]], jobs: int, say: Callable[[str], None]) -> None:
    """Run them all, at most `jobs` processes at a time; the first failure stops the others, which save.

    Raises:
        UserError: a stage ended with exit code 2 (its own line). Failed: with another one. Stopped: a signal came.
    """
    try:
        asyncio.run(_together(chains, jobs, say))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    except asyncio.CancelledError:
        raise Stopped from None


def answers_of(recipe: Recipe, seed: int, arm: str) -> tuple[list[str], list[list[str]]]:
    """What a finished evaluation answered, and the accepted answers. Raises UserError: a file that is none."""
    file = recipe.directory(seed, arm) / ANSWERS
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [row["answer"] for row in rows], [row["reference"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it to have the questions answered again") from None


def train_seconds(run_dir: Path) -> float:
    """Seconds of all steps of a run, without validation and start."""
    lines = (metrics_file(run_dir)).read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["step_seconds"] for line in lines)


def valid_loss(run_dir: Path) -> float:
    """Of a finished run, after its last step: nats a token on held-out samples."""
    last = json.loads((metrics_file(run_dir)).read_text(encoding="utf-8").splitlines()[-1])
    return float(last["valid_loss"])


def threads_each(jobs: int) -> int:
    """Threads of a process where `jobs` of them share this one's cores."""
    return max(1, len(os.sched_getaffinity(0)) // jobs)


def _chain(recipe: Recipe, seed: int, arm: str) -> list[Stage]:
    tuning = recipe.tuning(seed, arm)
    how = "fine-tune" if arm == TUNED else "fine-tune from random weights"
    before = [_training(f"seed {seed}: pretrain", recipe.pretrained(seed))] if arm == TUNED else []
    steps = [""] if len(tuning) == 1 else [f", step {number}" for number in range(1, len(tuning) + 1)]
    return [
        *before,
        *(_training(f"seed {seed}: {how}{step}", config) for step, config in zip(steps, tuning, strict=True)),
        _evaluation(recipe, f"seed {seed}: evaluate {arm}", tuning[-1]),
    ]


def _training(name: str, config: RunConfig) -> Stage:
    run_dir, last = Path(config.log.run_dir), step_name(config.train.steps)
    command = _command("train", str(_config_file(config)))
    return Stage(name, command, run_dir.with_suffix(".log"), lambda: (latest(run_dir) or run_dir).name == last)


def _evaluation(recipe: Recipe, name: str, config: RunConfig) -> Stage:
    run_dir, e = Path(config.log.run_dir), recipe.evaluate
    words = ["--tasks", e.task, "--batch_size", str(e.batch_size), "--answers", str(run_dir / ANSWERS)]
    limit = [] if e.limit is None else ["--limit", str(e.limit)]
    return Stage(
        name,
        _command("evaluate", str(run_dir), *words, *limit),
        run_dir.with_suffix(".log"),
        (run_dir / ANSWERS).is_file,
    )


def _command(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "altup_moe.cli", *words)


def _config_file(config: RunConfig) -> Path:
    return Path(config.log.run_dir).with_suffix(".yaml")


async def _together(chains: Sequence[Sequence[Stage]], jobs: int, say: Callable[[str], None]) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, this.cancel)
    environment = {"OMP_NUM_THREADS": str(threads_each(jobs)), **os.environ}
    free = asyncio.Semaphore(jobs)
    async with asyncio.TaskGroup() as group:
        for chain in chains:
            group.create_task(_follow(chain, free, environment, say))


async def _follow(
    chain: Sequence[Stage], free: asyncio.Semaphore, environment: Mapping[str, str], say: Callable[[str], None]
) -> None:
    async with free:
        for stage in chain:
            if stage.done():
                say(f"{stage.name}: done before")
                continue
            started = asyncio.get_running_loop().time()
            _judge(stage, await _exit_code(stage, environment))
            say(f"{stage.name}: {asyncio.get_running_loop().time() - started:.0f} s")


async def _exit_code(stage: Stage, environment: Mapping[str, str]) -> int:
    """Of its process; one that is no longer wanted is asked to save, and killed if nobody waits for that."""
    stage.log.parent.mkdir(parents=True, exist_ok=True)
    with stage.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *stage.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C reaches it once, through us
        )
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.terminate()
                try:
                    await process.wait()
                except asyncio.CancelledError:
                    process.kill()
                    raise


def _judge(stage: Stage, code: int) -> None:
    if code == USER_ERROR:
        last = (stage.log.read_text(encoding="utf-8", errors="replace").splitlines() or [""])[-1]
        raise UserError(f"{stage.name}: {last.removeprefix('altup-moe: error: ')}")
    if code == EXIT_STOPPED:
        raise Stopped
    if code:
        raise Failed(f"{stage.name} ended with exit code {code}; {stage.log} says why")


def _first_difference(theirs: object, ours: object, key: str = "") -> str | None:
    """The dotted key of the first value that differs, with both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inside = (_first_difference(theirs.get(k), ours.get(k), f"{key}.{k}".lstrip(".")) for k in {**theirs, **ours})
        return next((found for found in inside if found), None)
    return None if theirs == ours else f"{key} was {theirs!r}, is {ours!r}"
