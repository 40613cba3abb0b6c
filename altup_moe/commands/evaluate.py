"""`altup-moe evaluate RUN`: loss of a run on held-out text, or its answers to tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from altup_moe.config import ConfigError
from altup_moe.config.command import Command
from altup_moe.config.data_checks import check_task_files, task_directories, task_names
from altup_moe.config.expected_run import check_run
from altup_moe.config.ranges import COUNT
from altup_moe.data.sources import check_text_corpus


@dataclass(frozen=True)
class EvaluateOptions:
    """Loss, perplexity and bits per byte of a run's newest checkpoint; or with --tasks, how well it answers."""

    run_dir: Path
    """Directory of a run (log.run_dir)."""
    corpus: str | None = None
    """Text: a .txt, .md, .jsonl or .parquet file, a directory or a glob of them; or python-docs, wikipedia-sample, the
    path prefix of prepared data. None is the run's own validation part."""
    text_key: str | None = None
    """Column of the text in .jsonl and .parquet; None is text."""
    samples: int | None = None
    """Samples to read at most; None reads all of a given corpus, and of the run's own validation part as many as
    train.eval_samples."""
    tasks: str | None = None
    """Tasks to answer instead, separated by commas: their validation splits, greedily generated."""
    limit: int | None = None
    """Examples of each task to answer, the first ones; None is all."""
    batch_size: int = 16
    """Examples answered at once."""
    task_files: tuple[str, ...] = ()
    """Local data of tasks, each TASK=DIRECTORY, as data.task_files; beside the run's own."""
    answers: Path | None = None
    """File to write a task's answers to as well, a JSON line each: task, answer, reference."""
    json: bool = False
    """Print one JSON object instead of text."""


def evaluate(o: EvaluateOptions) -> int:
    """Check the options, then evaluate."""
    check_run(o.run_dir, "evaluate")
    if o.answers is not None and o.tasks is None:
        raise ConfigError("answers", str(o.answers), "belongs to tasks; name some")
    if o.corpus is not None:
        check_text_corpus("corpus", o.corpus)
    if o.samples is not None:
        COUNT.check("samples", o.samples)
    if o.tasks is not None:
        return _evaluate_tasks(o, o.tasks)
    from altup_moe.inference.evaluate import evaluate_command

    key = {} if o.text_key is None else {"text_key": o.text_key}
    return evaluate_command(run_dir=o.run_dir, corpus=o.corpus, samples=o.samples, as_json=o.json, **key)


def _evaluate_tasks(o: EvaluateOptions, tasks: str) -> int:
    for key in ("corpus", "samples", "text_key"):
        if getattr(o, key) is not None:
            raise ConfigError(key, getattr(o, key), "is of no use beside tasks; give one of the two")
    names = task_names("tasks", tasks)
    if o.limit is not None:
        COUNT.check("limit", o.limit)
    COUNT.check("batch_size", o.batch_size)
    check_task_files("task_files", o.task_files)
    if o.answers is not None and (o.answers.is_dir() or not o.answers.parent.is_dir()):
        raise ConfigError("answers", str(o.answers), "must name a file in a directory that exists")
    from altup_moe.inference.evaluate_tasks import evaluate_tasks_command

    return evaluate_tasks_command(
        run_dir=o.run_dir,
        tasks=names,
        limit=o.limit,
        files=task_directories(o.task_files),
        batch_size=o.batch_size,
        as_json=o.json,
        answers_file=o.answers,
    )


EVALUATE = Command(
    "evaluate",
    "RUN_DIR [options]",
    ["altup-moe evaluate runs/quickstart", "altup-moe evaluate runs/quickstart --corpus held_out.txt"],
    EvaluateOptions,
    evaluate,
    positional=["run_dir"],
    stray="a text to measure is given as --corpus {word}",
)
main = EVALUATE.main
