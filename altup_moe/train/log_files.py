"""The files of a run that have a line a step: metrics.jsonl, routing.jsonl, samples.jsonl. None can stop a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from altup_moe.config.files import fsync
from altup_moe.config.metrics_lines import split_metrics
from altup_moe.config.resume_keys import Changes
from altup_moe.config.run_directory import removed_metrics_file
from altup_moe.train.generation import GeneratedText
from altup_moe.train.kept_file import KeptFile
from altup_moe.train.metrics import StepMetrics


class _StepLines:
    """A file of JSON lines that have a step. Lines of steps that will be done again are moved beside it first."""

    def __init__(self, path: Path, first_step: int) -> None:
        self._file = KeptFile(path, lambda: _go_on(path, first_step))

    def write(self, line: dict[str, Any]) -> None:
        """Write a line that is there at once, or as soon as the disk takes it."""
        self._file.write(json.dumps(line).encode() + b"\n")

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

    Nothing is lost: one damaged line costs no other, and an OSError leaves both files as they were.
    """
    raw = path.read_bytes() if path.is_file() else b""
    lines = split_metrics(raw)
    kept = [line for line in lines if line.step is not None and line.step < first_step]
    unreadable = [line for line in lines if line.step is None]
    again = len(lines) - len(kept) - len(unreadable)
    content = b"".join(line.raw + b"\n" for line in kept)
    if content == raw:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if not raw.startswith(content):
            temporary.write_bytes(content)
            fsync(temporary)
        removed = [line.raw + b"\n" for line in lines if line.step is None or line.step >= first_step]
        if removed:
            _append_durably(removed_metrics_file(path), b"".join(removed))
        if raw.startswith(content):
            os.truncate(path, len(content))
            fsync(path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if removed:
        numbers = ", ".join(str(line.number) for line in unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        what = [f"{again} line(s) of steps from {first_step} on"] if again else []
        what += [f"{len(unreadable)} line(s) that cannot be read ({numbers})"] if unreadable else []
        beside = removed_metrics_file(path)
        print(f"{path.name}: {' and '.join(what)} moved to {beside.name}", flush=True)


def _append_durably(path: Path, content: bytes) -> None:
    """All of it or, with an OSError, none."""
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise
