"""Where a step's record goes: metrics.jsonl, the console, TensorBoard, and W&B or MLflow if asked for. Rank 0 only.

None of them stops a run once it has begun. Files keep what a full disk refuses (`kept_file.py`); what a tracker of
others refuses is lost, and said once.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from altup_moe.config import RunConfig
from altup_moe.config.output import complain
from altup_moe.config.resume_keys import Changes
from altup_moe.config.run_directory import metrics_file, routing_file, samples_file
from altup_moe.parallel.watchdog import notes
from altup_moe.parallel.watchdog.watcher import TRACKING, TRAINING
from altup_moe.report.metric_groups import GROUPS
from altup_moe.train.generation import GeneratedText
from altup_moe.train.log_files import JsonLines, RoutingLines, SampleLines
from altup_moe.train.metrics import StepMetrics
from altup_moe.train.time_left import TimeLeft, spelled_left
from altup_moe.train.tracker_pages import load_picture, tracked


class Logger(Protocol):
    """Takes one record a step, and is closed once."""

    def log(self, metrics: StepMetrics) -> None:
        """Record one step."""

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        """Record what the model generates after a step that `log` was called for."""

    def close(self) -> None:
        """Flush and release; nothing is recorded afterwards."""


def _said_at_once(metrics: StepMetrics) -> bool:
    named = (metrics.slow_rank, metrics.slow_link_sender, metrics.slow_link_receiver)
    return metrics.valid_loss is not None or any(one is not None for one in named)


class Console:
    """A line a step. The time left is at the end of each, or on a terminal in a progress bar below them.

    Args:
        steps: of the whole schedule. last: step after which the run ends; None is `steps`.
        clock: returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        steps: int,
        interval: int,
        first_step: int,
        last: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.interval, self._clock = steps, interval, clock
        self._time_left = TimeLeft(last or steps)
        self._progress: Any = None
        if sys.stdout.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns)
            self._task = self._progress.add_task("steps", total=steps, completed=first_step - 1)
            self._progress.start()

    def log(self, metrics: StepMetrics) -> None:
        left = self._time_left.step_ended(metrics.step, self._clock())
        if metrics.step % self.interval == 0 or metrics.step == self.steps or _said_at_once(metrics):
            line = metrics.line(self.steps)
            if self._progress is None:
                print(line if left is None else f"{line} | {spelled_left(left)}", flush=True)
            else:
                self._progress.console.print(line, highlight=False, soft_wrap=True)
        if self._progress is not None:
            self._progress.update(self._task, completed=metrics.step)

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        for one in texts:
            # Whatever the model writes stays in one line.
            prompt, text = (json.dumps(part, ensure_ascii=False) for part in (one.prompt, one.text))
            line = f"sample of step {step}: {prompt} -> {text}"
            if self._progress is None:
                print(line, flush=True)
            else:
                self._progress.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class WandB:
    """One W&B run of the run directory's name."""

    def __init__(self, project: str, config: RunConfig) -> None:
        import wandb

        run_dir = Path(config.log.run_dir)
        self._table = wandb.Table
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            dir=str(run_dir),
            config=config.to_dict(),
            # A run that goes on may have changed keys.
            allow_val_change=True,
            resume="allow",
            id=run_dir.name,
        )
        self._image = wandb.Image
        # Sections are the parts of names before the slash; all are drawn over the step.
        self._run.define_metric("step")
        for group in GROUPS:
            summary = {"validation": {"summary": "min"}, "eval": {"summary": "max"}}.get(group, {})
            self._run.define_metric(f"{group}/*", step_metric="step", **summary)

    def log(self, metrics: StepMetrics) -> None:
        values: dict[str, Any] = {"step": metrics.step, **tracked(metrics)}
        if metrics.routing is not None:
            values["routing/load"] = self._image(load_picture(metrics.routing))
        self._run.log(values, step=metrics.step)

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        rows = [[step, one.prompt, one.text] for one in texts]
        self._run.log({"samples": self._table(columns=["step", "prompt", "text"], data=rows)}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One MLflow run, in the tracking store that the environment names, or in the run directory."""

    def __init__(self, experiment: str, config: RunConfig) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri((Path(config.log.run_dir).absolute() / "mlflow").as_uri())
        mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=Path(config.log.run_dir).name)
        sections = config.to_dict().items()
        mlflow.log_params({f"{section}.{key}": value for section, keys in sections for key, value in keys.items()})

    def log(self, metrics: StepMetrics) -> None:
        self._mlflow.log_metrics(tracked(metrics), step=metrics.step)

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        lines = [json.dumps({"step": step, **vars(one)}, ensure_ascii=False) for one in texts]
        self._mlflow.log_text("\n".join(lines), f"samples/step_{step:08d}.jsonl")

    def close(self) -> None:
        self._mlflow.end_run()


class BestEffort:
    """A tracker whose errors do not stop a run: the first is said in one line, and later steps are tried again."""

    def __init__(self, tracker: Logger) -> None:
        self.tracker, self._failed = tracker, 0

    def log(self, metrics: StepMetrics) -> None:
        self._try(lambda: self.tracker.log(metrics))

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        self._try(lambda: self.tracker.log_texts(step, texts))

    def close(self) -> None:
        self._try(self.tracker.close)
        if self._failed:
            complain(f"{type(self.tracker).__name__}: {self._failed} record(s) were not taken")

    def _try(self, call: Callable[[], None]) -> None:
        notes.progress(TRACKING)
        try:
            call()
        except Exception as error:  # a tracker has errors of its own: of networks, files, servers
            self._failed += 1
            if self._failed == 1:
                what = " ".join(f"{type(error).__name__}: {error}".split())
                complain(f"{type(self.tracker).__name__}: {what}; training goes on, later steps are tried again")
        finally:
            notes.progress(TRAINING)


def open_loggers(config: RunConfig, first_step: int, changed: Changes | None = None) -> list[Logger]:
    """All loggers of a run that begins with step `first_step`, and changes keys there."""
    run_dir, log = Path(config.log.run_dir), config.log
    loggers: list[Logger] = [
        JsonLines(metrics_file(run_dir), first_step, changed),
        Console(config.train.steps, log.interval, first_step, config.train.stop_after),
    ]
    if config.moe.num_experts and log.routing_interval != 0:
        loggers.append(RoutingLines(routing_file(run_dir), first_step))
    samples = samples_file(run_dir)
    # Also without samples from here on: lines of steps that are done again must go.
    if log.sample_interval is not None or samples.is_file():
        loggers.append(SampleLines(samples, first_step))
    if log.tensorboard:
        from altup_moe.train.tensorboard_files import TensorBoard

        loggers.append(TensorBoard(config, first_step))
    if log.wandb_project is not None:
        loggers.append(BestEffort(WandB(log.wandb_project, config)))
    if log.mlflow_experiment is not None:
        loggers.append(BestEffort(MLflow(log.mlflow_experiment, config)))
    return loggers
