"""What a path is where a run, or a checkpoint of one, is expected, and the command line that was meant."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.hub_directory import OWN_TYPES, USE_THE_RUN, model_type
from altup_moe.config.load import read_yaml
from altup_moe.config.run_directory import checkpoints_dir, config_file
from altup_moe.config.schema import LogConfig, RunConfig

MAKE_ONE = "altup-moe train quickstart --log.run_dir RUN to make one"
MANIFEST = "manifest.json"
"""File of a checkpoint (of `altup_moe.checkpoint.manifest`, which this layer cannot import)."""
_NAMED = 3
"""Runs of a directory that a message names."""


@dataclass(frozen=True)
class _Found:
    """What a path is, in words, and the run that it leads to or the next command."""

    what: str
    run: Path | None = None
    next: str = MAKE_ONE


def check_run(path: Path, command: str, after: Sequence[str] = (), key: str = "run_dir", trained: bool = True) -> None:
    """Raise ConfigError unless `path` is a run's directory; the message ends with what to type.

    Args:
        command: the command that takes the run, e.g. ``evaluate``. after: words that follow the run.
        key: name of the value in messages. trained: whether it must have a checkpoint.
    """
    if _is_run(path) and (_is_trained(path) or not trained):
        return
    found = _found(path)
    follows = (
        found.next if found.run is None else shlex.join(["altup-moe", *shlex.split(command), str(found.run), *after])
    )
    raise ConfigError(key, str(path), f"{found.what}; type {follows}")


def check_source(path: Path, command: str, after: Sequence[str] = (), key: str = "path") -> None:
    """Raise ConfigError, as `check_run` does, unless `path` is a directory with a checkpoint, a run's or its own."""
    if not (path / MANIFEST).is_file() and not _is_trained(path):
        check_run(path, command, after, key)


def check_initial_load(config: RunConfig, file: str | Path) -> None:
    """Raise ConfigError, as `check_run` does, if a new run is to start from where no checkpoint is.

    Args:
        file: the run's configuration, for the message.
    """
    for name in ("initial_load_path", "branch_from"):
        key, path = f"checkpoint.{name}", getattr(config.checkpoint, name)
        if path is not None and not _is_trained(Path(config.log.run_dir)):
            check_source(Path(path), f"train {shlex.quote(str(file))} --{key}", key=key)


def _found(path: Path) -> _Found:
    if not path.exists():
        return _Found("there is no such directory", _like(path))
    if _is_run(path / "run"):
        return _Found("is a row of a study; its run lies below", path / "run")
    if _is_run(path):
        return _Found("has no checkpoint yet", next=f"altup-moe train {_word(config_file(path))}")
    for parent in path.parents[:4]:
        if parent.name and _is_run(parent):
            return _Found(f"lies in the run {parent}", parent)
    return _found_file(path) if path.is_file() else _found_directory(path)


def _found_file(path: Path) -> _Found:
    if path.suffix not in (".yaml", ".yml"):
        return _Found("is a file; a run is a directory, the log.run_dir of its configuration")
    run = _run_of_configuration(path)
    if run is not None and _is_run(run):
        return _Found(f"is a configuration; its run is {run}", run)
    return _Found("is a configuration that no run was made with yet", next=f"altup-moe train {_word(path)}")


def _found_directory(path: Path) -> _Found:
    if (path / MANIFEST).is_file():
        return _Found("is a checkpoint without its run", next=f"altup-moe inspect {_word(path)}")
    if (path / "rows").is_dir():
        rows = sorted(filter(_is_run, (path / "rows").glob("*/run")))
        if rows:
            return _Found("is a study, whose rows are runs", max(rows, key=_is_trained))
        return _Found("is a study without a row that has begun", next=f"altup-moe study status {_word(path)}")
    kind = model_type(path)
    if kind in OWN_TYPES:
        return _Found(USE_THE_RUN, _like(path) or Path("RUN"))
    if kind is not None:
        return _Found("is a Hugging Face model", next=f"altup-moe convert import {_word(path)} RUN")
    runs = [each for each in sorted(path.glob("*")) if _is_run(each)]
    if runs:
        more = ", ..." if len(runs) > _NAMED else ""
        first = max(runs, key=_is_trained)
        return _Found(f"holds runs ({', '.join(run.name for run in runs[:_NAMED])}{more})", first)
    return _Found("holds no config.yaml, so it is no run")


def _run_of_configuration(path: Path) -> Path | None:
    """log.run_dir of a file; None if it is no configuration."""
    try:
        section = read_yaml(path).get("log") or {}
    except UserError:
        return None
    return Path(str(section.get("run_dir", LogConfig().run_dir))) if isinstance(section, dict) else None


def _like(path: Path) -> Path | None:
    """The run beside `path`, or in runs/, whose name is most like it."""
    folders = dict.fromkeys((path.parent, Path("runs")))
    runs = {str(run): run for folder in folders if folder.is_dir() for run in folder.glob("*") if _is_run(run)}
    near = difflib.get_close_matches(str(path), runs, 1) or [
        name for name, run in runs.items() if difflib.get_close_matches(path.name, [run.name], 1)
    ]
    return runs[near[0]] if near else None


def _is_run(path: Path) -> bool:
    return config_file(path).is_file()


def _is_trained(path: Path) -> bool:
    return any(checkpoints_dir(path).glob("*"))


def _word(path: Path) -> str:
    return shlex.quote(str(path))
