"""`altup-moe recipe FILE`: the AltUp paper's path in one command: pretrain, fine-tune, answer questions, compare.

For every seed of the recipe a model is pretrained, fine-tuned, and answers the questions of a validation split; so does
a control, fine-tuned in the same way from random weights. Fine-tuning may be a list of steps, each going on from the
one before. The last lines say whether pretraining helped, question by question. Everything lies in the run directory:
configurations, logs, runs, answers, results.json and table.txt.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config import UserError
from altup_moe.config.command import Command
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.config.files import write_text
from altup_moe.config.locks import locked_directory
from altup_moe.config.ranges import COUNT
from altup_moe.data.tasks.metrics import squad_scores
from altup_moe.recipe.compare import Results, loss_line, results, results_table
from altup_moe.recipe.recipe import ARMS, CONTROL, TUNED, PaperRecipe, load_recipe
from altup_moe.recipe.run import (
    StageFailed,
    answers_of,
    claim,
    run_stages,
    stages,
    threads_each,
    train_seconds,
    valid_loss,
)
from altup_moe.study.job_pool import StoppedBySignal


@dataclass(frozen=True)
class PaperOptions:
    """Pretrain, fine-tune with and without it, evaluate both, for every seed of a recipe."""

    recipe: Path
    """A recipe's YAML file: seeds, pretrain, finetune, evaluate."""
    jobs: int = 2
    """Processes side by side; they share the cores."""
    run_dir: Path | None = None
    """Where everything is written; None is the recipe's pretrain.log.run_dir."""
    json: bool = False
    """Print the results as one JSON object instead of a table."""


def recipe(options: PaperOptions) -> int:
    """Run what is not done yet, and compare. Returns the exit code."""
    try:
        return run_paper(options)
    except StageFailed as error:
        print(f"altup-moe: error: {error}", file=sys.stderr)
        return 1
    except StoppedBySignal:
        print("altup-moe: stopped, saved; the same command goes on", file=sys.stderr)
        return EXIT_STOPPED


def run_paper(options: PaperOptions) -> int:
    """Do what is not done yet, then compare. Raises UserError before anything starts."""
    started = time.monotonic()
    COUNT.check("jobs", options.jobs)
    recipe = load_recipe(options.recipe, options.run_dir)
    _check_run_dir(recipe.run_dir)
    with locked_directory(recipe.run_dir, "recipe", "name another --run_dir"):
        return _run_locked(options, recipe, started)


def _run_locked(options: PaperOptions, recipe: PaperRecipe, started: float) -> int:
    todo = stages(recipe)
    claim(recipe)
    fresh = not any(stage.done() for stage in todo)
    if not all(stage.done() for stage in todo):
        _fetch(recipe)
        run_stages(todo, options.jobs, lambda line: print(line, file=sys.stderr, flush=True))
    found = compare_answers(recipe)
    minutes, threads = (time.monotonic() - started) / 60, threads_each(options.jobs)
    seconds = {stage: _train_seconds(recipe, stage) for stage in ("pretrained", TUNED, CONTROL)}
    losses = {arm: [valid_loss(recipe.directory(seed, arm)) for seed in recipe.seeds] for arm in ARMS}
    content = {
        **found.to_dict(),
        "valid_loss": losses,
        "train_seconds": seconds,
        "minutes": minutes,
        "jobs": options.jobs,
        "fresh": fresh,
    }
    trained = f"steps of one seed: {seconds['pretrained']:.0f} s pretraining, {seconds[TUNED]:.0f} s fine-tuning"
    whole = f"this call {minutes:.1f} min, {options.jobs} jobs of {threads} thread(s)"
    before = "" if fresh else ", some stages done before"
    text = f"{results_table(found)}\n{loss_line(losses)}\n{trained}; {whole}{before}\n"
    write_text(recipe.run_dir / "results.json", json.dumps(content, indent=1) + "\n")
    write_text(recipe.run_dir / "table.txt", text)
    print(json.dumps(content) if options.json else text, end="\n" if options.json else "")
    return 0


def compare_answers(recipe: PaperRecipe) -> Results:
    """Results of finished stages. Raises UserError: answers that cannot be read, or are not to the same questions."""
    found = {arm: [answers_of(recipe, seed, arm) for seed in recipe.seeds] for arm in (TUNED, CONTROL)}
    (_, references), *others = [*found[TUNED], *found[CONTROL]]
    if any(accepted != references for _, accepted in others):
        raise UserError(f"{recipe.run_dir}: runs answered different questions; remove their answers.jsonl")
    tuned, control = ([texts for texts, _ in found[arm]] for arm in (TUNED, CONTROL))
    return results(recipe.evaluate.task, recipe.seeds, squad_scores, references, tuned, control)


def _check_run_dir(run_dir: Path) -> None:
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"{run_dir}: is no directory; name one that may be made with --run_dir")


def _fetch(recipe: PaperRecipe) -> None:
    """Fetch and prepare data once, before several processes want it; mistakes in it are found here."""
    # Megatron-Core says at import what it falls back to, and that indexes are kept in memory: expected here.
    warnings.filterwarnings("ignore", module=r"megatron\.")
    logging.getLogger("megatron").setLevel(logging.ERROR)
    from altup_moe.data.prepare import data_cache
    from altup_moe.data.tasks.registry import TASKS, load_examples
    from altup_moe.train.mixture import run_samples, task_directories

    seed = recipe.seeds[0]
    for config in (runs := [recipe.pretrained(seed), *recipe.tuning(seed, TUNED)]):
        run_samples(config)
    files, cache = task_directories(runs[-1].data.task_files), data_cache(runs[-1])
    load_examples(TASKS[recipe.evaluate.task], "validation", files, cache)


def _train_seconds(recipe: PaperRecipe, stage: str) -> float:
    """Of all runs of a stage; mean over the seeds."""
    runs = [
        run
        for seed in recipe.seeds
        for run in ([recipe.pretrained(seed)] if stage == "pretrained" else recipe.tuning(seed, stage))
    ]
    return sum(train_seconds(Path(run.log.run_dir)) for run in runs) / len(recipe.seeds)


RECIPE = Command(
    "recipe",
    "FILE [options]",
    ["altup-moe recipe paper_tiny --jobs 2"],
    PaperOptions,
    recipe,
    positional=["recipe"],
    more="""Everything is written to the run directory: configurations, logs, runs, answers, results.json, table.txt.
    The same command goes on where it was stopped. Exit codes: 0; 1 a stage failed (its log says why); 2 a value
    that does not fit; 75 a signal, after saving.""",
)
main = RECIPE.main
