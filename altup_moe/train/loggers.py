"""Where a step's record goes: metrics.jsonl, the console, TensorBoard, and W&B or MLflow if asked for. Rank 0 only."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from altup_moe.config import RunConfig
from altup_moe.config.files import write_bytes
from altup_moe.config.metrics_lines import split_metrics
from altup_moe.config.resume_keys import Changes
from altup_moe.config.run_directory import (
    metrics_file,
    removed_metrics_file,
    routing_file,
    samples_file,
    tensorboard_dir,
)
from altup_moe.report.metric_groups import GROUPS
from altup_moe.train.generation import GeneratedText
from altup_moe.train.metrics import StepMetrics
from altup_moe.train.time_left import TimeLeft, spelled_left
from altup_moe.train.tracker_pages import load_picture, tensorboard_pages, tracked


class Logger(Protocol):
    """Takes one record a step, and is closed once."""

    def log(self, metrics: StepMetrics) -> None:
        """Record one step."""

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        """Record what the model generates after a step that `log` was called for."""

    def close(self) -> None:
        """Flush and release; nothing is recorded afterwards."""


class _StepLines:
    """A file of JSON lines that have a step. Lines of steps that will be done again are moved beside it first."""

    def __init__(self, path: Path, first_step: int) -> None:
        _go_on(path, first_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open for the whole run)

    def write(self, line: dict[str, Any]) -> None:
        """Write a line that is there at once."""
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        """Nothing, unless the file is for texts."""

    def close(self) -> None:
        """End it."""
        self._file.close()


class RoutingLines(_StepLines):
    """routing.jsonl: the routes of every layer and expert, summed over `steps` steps that end with `step`."""

    def log(self, metrics: StepMetrics) -> None:
        if metrics.routing is not None:
            loads = metrics.routing
            routes = [[round(route) for route in layer] for layer in loads.routes]
            dropped = [round(count) for count in loads.dropped]
            self.write({"step": metrics.step, "steps": loads.steps, "routes": routes, "dropped": dropped})


class JsonLines(_StepLines):
    """metrics.jsonl, one object a step.

    Args:
        changed: keys of the configuration that this step changes, key -> (before, now); the first line holds them.
    """

    def __init__(self, path: Path, first_step: int, changed: Changes | None = None) -> None:
        self._changed = changed or {}
        super().__init__(path, first_step)

    def log(self, metrics: StepMetrics) -> None:
        # JSON has no word for infinity or NaN: null says that the step had no such number.
        line: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in metrics.to_dict().items()}
        if self._changed:
            line["changed"], self._changed = self._changed, {}
        self.write(line)


class SampleLines(_StepLines):
    """samples.jsonl: the texts of log.sample_interval, one object each."""

    def log(self, metrics: StepMetrics) -> None:
        """Nothing: texts come by `log_texts`."""

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        for one in texts:
            self.write({"step": step, **vars(one)})


def _go_on(path: Path, first_step: int) -> None:
    """Leave in the file the lines before `first_step`; append the others, and what cannot be read, to the one beside.

    Nothing is lost: one damaged line costs no other.
    """
    lines = split_metrics(path.read_bytes()) if path.is_file() else []
    kept = [line for line in lines if line.step is not None and line.step < first_step]
    unreadable = [line for line in lines if line.step is None]
    again = len(lines) - len(kept) - len(unreadable)
    if len(kept) < len(lines):
        beside = removed_metrics_file(path)
        with open(beside, "ab") as file:
            file.write(b"".join(line.raw + b"\n" for line in lines if line.step is None or line.step >= first_step))
            file.flush()
            os.fsync(file.fileno())
        numbers = ", ".join(str(line.number) for line in unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        what = [f"{again} line(s) of steps from {first_step} on"] if again else []
        what += [f"{len(unreadable)} line(s) that cannot be read ({numbers})"] if unreadable else []
        print(f"{path.name}: {' and '.join(what)} moved to {beside.name}", flush=True)
    write_bytes(path, b"".join(line.raw + b"\n" for line in kept))


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
        if metrics.step % self.interval == 0 or metrics.step == self.steps or metrics.valid_loss is not None:
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


class TensorBoard:
    """Event files in RUN/tensorboard: a scalar a number, pages of them (custom scalars), pictures of the routing."""

    def __init__(self, config: RunConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(tensorboard_dir(config.log.run_dir)), purge_step=first_step)
        self._writer.add_custom_scalars(tensorboard_pages(config))

    def log(self, metrics: StepMetrics) -> None:
        for name, value in tracked(metrics).items():
            self._writer.add_scalar(name, value, metrics.step)
        if metrics.routing is not None:
            self._writer.add_image("routing/load", load_picture(metrics.routing), metrics.step, dataformats="HWC")

    def log_texts(self, step: int, texts: Sequence[GeneratedText]) -> None:
        for number, one in enumerate(texts):
            # Indented by four, it is shown as it is.
            shown = f"{one.prompt}\n---\n{one.text}".replace("\n", "\n    ")
            self._writer.add_text(f"samples/{number}", f"    {shown}", step)

    def close(self) -> None:
        self._writer.close()


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
        loggers.append(TensorBoard(config, first_step))
    if log.wandb_project is not None:
        loggers.append(WandB(log.wandb_project, config))
    if log.mlflow_experiment is not None:
        loggers.append(MLflow(log.mlflow_experiment, config))
    return loggers
