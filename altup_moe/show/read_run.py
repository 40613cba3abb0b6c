"""Read all that a run directory says of its run; a damaged file costs nothing else, and is said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.manifest import Manifest, read_manifest
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import DataError, RunConfig, UserError
from altup_moe.config.expected_run import check_run
from altup_moe.config.load import from_dict, read_yaml
from altup_moe.config.locks import is_locked
from altup_moe.config.metrics_lines import split_metrics
from altup_moe.config.run_directory import (
    config_file,
    metrics_file,
    removed_metrics_file,
    routing_file,
    samples_file,
    starts_file,
)

Line = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run directory say.

    ``config``: None if this version cannot read it; ``keys``: section -> key -> value, as far as they are known.
    ``lines``, ``removed``, ``routing``, ``starts``, ``samples``: JSON lines that can be read, in the files' order.
    ``checkpoint``: name of the newest one, with its manifest. ``notes``: what could not be read, a sentence each.
    """

    directory: Path
    config: RunConfig | None
    keys: dict[str, dict[str, Any]]
    text: str
    lines: tuple[Line, ...]
    removed: tuple[Line, ...]
    routing: tuple[Line, ...]
    starts: tuple[Line, ...]
    samples: tuple[Line, ...]
    checkpoint: str | None
    manifest: Manifest | None
    running: bool
    notes: tuple[str, ...]

    @property
    def step(self) -> int:
        """Steps that are done."""
        return int(self.lines[-1]["step"]) if self.lines else 0


def read_run(directory: Path) -> RunFiles:
    """Read a run directory; the run may be training.

    Raises:
        UserError: it is none, or its config.yaml cannot be opened.
    """
    check_run(directory, "show", key="runs", trained=False)
    notes: list[str] = []
    # Before the lines: a run that ends meanwhile is one that ran.
    running = is_locked(directory)
    text, keys, config = _configuration(config_file(directory), notes)
    metrics = metrics_file(directory)
    lines, removed, routing, starts, samples = (
        _lines(path, notes)
        for path in (
            metrics,
            removed_metrics_file(metrics),
            routing_file(directory),
            starts_file(directory),
            samples_file(directory),
        )
    )
    checkpoint, manifest = _newest(directory, notes)
    return RunFiles(
        directory=directory,
        config=config,
        keys=keys,
        text=text,
        lines=lines,
        removed=removed,
        routing=routing,
        starts=starts,
        samples=samples,
        checkpoint=checkpoint,
        manifest=manifest,
        running=running,
        notes=tuple(notes),
    )


def _configuration(path: Path, notes: list[str]) -> tuple[str, dict[str, dict[str, Any]], RunConfig | None]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    content: dict[Any, Any] = {}
    try:
        content = read_yaml(path)
        config = from_dict(content)
    except UserError as error:
        notes.append(f"{path.name} cannot be read by this version ({error}): figures that need it are missing")
        return text, {str(s): dict(v) for s, v in content.items() if isinstance(v, dict)}, None
    return text, config.to_dict(), config


def _lines(path: Path, notes: list[str]) -> tuple[Line, ...]:
    try:
        found = split_metrics(path.read_bytes())
    except FileNotFoundError:
        return ()
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}")
        return ()
    damaged = [line.number for line in found if line.content is None]
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        notes.append(f"{path.name}: {len(damaged)} line(s) cannot be read ({numbers}), left out")
    return tuple(line.content for line in found if line.content is not None)


def _newest(directory: Path, notes: list[str]) -> tuple[str | None, Manifest | None]:
    try:
        found = latest_checkpoint(directory)
        return (None, None) if found is None else (found.name, read_manifest(found))
    except (DataError, OSError) as error:
        notes.append(f"newest checkpoint: {error}")
        return None, None


def number(line: Line, key: str) -> float | None:
    """A finite number of a line; None if there is none."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # An integer may be too large for a float.
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def numbers(lines: Sequence[Line], key: str) -> list[float]:
    """The finite numbers of lines."""
    return [value for line in lines if (value := number(line, key)) is not None]


def short_names(directories: Sequence[Path]) -> list[str]:
    """Names that tell runs apart: as many parts from the ends of their paths as that takes."""
    parts = [Path(directory).absolute().parts for directory in directories]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(one)} ({i})" for i, one in enumerate(parts, 1)]
