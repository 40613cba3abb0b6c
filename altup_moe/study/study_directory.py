"""The directory of a study. Every file is complete or absent, so a study that is killed at any moment goes on.

DIR/study.yaml              the rows of the study, resolved
DIR/rows.jsonl              a line for every finished row (records.py)
DIR/lock                    held while a study runs here
DIR/data/                   tokens, shared by the rows
DIR/slurm/                  what launcher slurm has submitted (slurm/batches.py)
DIR/rows/NAME-sSEED-HASH/   config.yaml   what the row trains
                            run/          its run directory
                            log.txt       what its processes printed
                            trained.json  written once it is trained and evaluated
                            steps-0.json, texts-0.json ... what each round measured
                            failure.txt   why it failed, in one line
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.files import check_directory, write_text
from altup_moe.config.load import load_config, read_yaml, save_config
from altup_moe.config.locks import is_locked, locked_directory
from altup_moe.config.metrics_lines import read_metrics
from altup_moe.config.run_directory import checkpoints_dir, config_file, metrics_file
from altup_moe.study.records import StudyRow, read_rows
from altup_moe.study.slurm.cluster import read_cluster
from altup_moe.study.spec import Branch, Budget, MeasureSpec, RowSpec, Study

ROWS = "rows.jsonl"
STUDY = "study.yaml"
MeasureKind = Literal["steps", "texts"]
"""What is measured: training steps, or prompts and generated tokens."""
KINDS: tuple[MeasureKind, ...] = ("steps", "texts")
"""In this order in each round."""


def check_study(root: Path) -> None:
    """Raise UserError unless a directory holds a study."""
    if (root / STUDY).is_file() or (root / ROWS).is_file():
        return
    if _is_run(root):
        raise UserError(f"{root}: is a training run, no study; type altup-moe show {root}")
    if root.is_dir():
        said = f"holds neither {ROWS} nor {STUDY}, so it is no study"
    else:
        said = "is a file; a study is a directory" if root.exists() else "there is no such directory"
    near = _like(root)
    instead = "altup-moe study run quick_pareto makes one" if near is None else f"nearest study is {near}"
    raise UserError(f"{root}: {said}; {instead}")


def check_new_study(key: str, root: Path) -> None:
    """Raise ConfigError if a study cannot be in a directory: it holds a training run, or a file is in its place."""
    check_directory(key, root)
    if _is_run(root) and not (root / STUDY).is_file():
        raise ConfigError(key, str(root), "is the directory of a training run; another would fit")


def _is_run(root: Path) -> bool:
    return config_file(root).is_file() or checkpoints_dir(root).is_dir()


def _like(root: Path) -> Path | None:
    """The study beside `root`, or in runs/study/, whose name is most like it; `root` itself may be one's file."""
    if root.is_file() and any((root.parent / name).is_file() for name in (STUDY, ROWS)):
        return root.parent
    folders = dict.fromkeys((root.parent, Path("runs/study")))
    studies = {file.parent.name: file.parent for folder in folders for file in folder.glob(f"*/{STUDY}")}
    near = get_close_matches(root.name, studies, 1)
    return studies[near[0]] if near else None


@dataclass(frozen=True)
class RowDirectory:
    """The directory of one row."""

    root: Path

    @property
    def config(self) -> Path:
        """File of the row's configuration."""
        return config_file(self.root)

    @property
    def run_dir(self) -> Path:
        """Run directory of the row."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """File of what the row's processes printed."""
        return self.root / "log.txt"

    @property
    def trained(self) -> Path:
        """File of the trained model's figures; it exists once the row is trained."""
        return self.root / "trained.json"

    @property
    def failure(self) -> Path:
        """File that says why a process of the row failed."""
        return self.root / "failure.txt"

    def measured(self, kind: MeasureKind, number: int) -> Path:
        """File of what a round measured."""
        return self.root / f"{kind}-{number}.json"

    def all_measured(self, rounds: int) -> bool:
        """Whether every round was measured."""
        return all(self.measured(kind, number).exists() for number in range(rounds) for kind in KINDS)

    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The run's metrics of each step so far; a damaged or incomplete line is left out."""
        return metrics_lines(metrics_file(self.run_dir))

    def clear(self) -> None:
        """Remove the row's files; it begins anew."""
        shutil.rmtree(self.root, ignore_errors=True)


def metrics_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """The records of a metrics file that can be read; () if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return _lines(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _lines(path: Path, size: int, changed: int) -> tuple[dict[str, Any], ...]:
    # The table is drawn every second: only a file that has changed is read again.
    return tuple(read_metrics(path))


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """Read an object that `write_json` wrote; None if there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object atomically."""
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


@dataclass(frozen=True)
class StudyDirectory:
    """The directory of a study."""

    root: Path

    @property
    def slurm(self) -> Path:
        """Directory of what launcher slurm has submitted."""
        return self.root / "slurm"

    def of_row(self, row: RowSpec) -> RowDirectory:
        """The directory of a row."""
        return RowDirectory(self.root / "rows" / row.key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of this directory, which is made if it is missing.

        Raises:
            UserError: another study runs here, or it cannot be written.
        """
        with locked_directory(self.root, "study", "name another --dir"):
            yield

    def config(self, row: RowSpec) -> RunConfig:
        """A row's configuration with its run directory here, and the weights that it starts from.

        Tokens are shared by all rows unless data.cache is given.
        """
        config, checkpoint = row.config, row.config.checkpoint
        if row.after is not None:
            checkpoint = replace(checkpoint, initial_load_path=str(self.of_row(row.after).run_dir))
        if row.branch is not None:
            from altup_moe.checkpoint.store import step_name  # loads numpy, which a dry run does without

            root = checkpoints_dir(self.of_row(row.branch.row).run_dir)
            checkpoint = replace(checkpoint, branch_from=str(root / step_name(row.branch.step)))
        log = replace(config.log, run_dir=str(self.of_row(row).run_dir))
        data = replace(config.data, cache=config.data.cache or str(self.root / "data"))
        return replace(config, log=log, data=data, checkpoint=checkpoint)

    def lay_out(self, study: Study) -> None:
        """Write study.yaml and the configuration of every row."""
        rows = [
            {
                "name": row.name,
                "family": row.family,
                "seed": row.seed,
                "config_hash": row.config_hash,
                "directory": f"rows/{row.key}",
                "set": row.overrides,
                "ranks": row.ranks,
                "launcher": row.launcher,
                "rate": row.rate,
                "threads": row.threads,
                "budget": dict(vars(row.budget)),
                **({} if row.after is None else {"after": f"rows/{row.after.key}"}),
                **({} if row.branch is None else {"branches_off": [f"rows/{row.branch.row.key}", row.branch.step]}),
                **({} if row.role == "trained" else {"role": row.role}),
            }
            for row in study.rows
        ]
        for row in study.rows:
            # A row that is finished stays as it was written, and so does a file without keys that were added later.
            file, config = self.of_row(row).config, self.config(row)
            if not self.of_row(row).trained.exists() and not (file.is_file() and load_config(file) == config):
                save_config(config, file)
        content: dict[str, Any] = {"name": study.name, "measure": dict(vars(study.measure)), "rows": rows}
        if study.on_slurm:
            content["cluster"] = dict(vars(study.cluster))
        write_text(self.root / STUDY, yaml.safe_dump(content, sort_keys=False))

    def study(self) -> Study:
        """Read the study that `lay_out` wrote.

        Raises:
            UserError: there is none.
        """
        check_study(self.root)
        path = self.root / STUDY
        if not path.is_file():
            raise UserError(f"{self.root}: holds no {STUDY}; the directory that `altup-moe study run` writes would fit")
        content = read_yaml(path)
        rows: dict[str, RowSpec] = {}
        for written in content["rows"]:
            directory, step = written.get("branches_off", (None, 0))
            branch = None if directory is None else Branch(rows[directory], step)
            rows[written["directory"]] = self._read_row(written, rows.get(written.get("after")), branch)
        measure, cluster = MeasureSpec(**content["measure"]), read_cluster(content.get("cluster"))
        return Study(content["name"], list(rows.values()), measure, cluster=cluster)

    def _read_row(self, written: dict[str, Any], after: RowSpec | None, branch: Branch | None) -> RowSpec:
        config = load_config(RowDirectory(self.root / written["directory"]).config)
        if after is not None:
            config = replace(config, checkpoint=replace(config.checkpoint, initial_load_path=None))
        if branch is not None:
            config = replace(config, checkpoint=replace(config.checkpoint, branch_from=None))
        run = {key: written[key] for key in ("name", "family", "seed", "ranks", "launcher", "rate", "threads")}
        budget = Budget(**written["budget"])
        role = written.get("role", "trained")
        return RowSpec(
            overrides=written["set"], config=config, budget=budget, after=after, branch=branch, role=role, **run
        )

    def loss(self, row: RowSpec) -> float | None:
        """Held-out loss of a row: None while it is not trained, inf if it has failed."""
        trained = read_json_or_none(self.of_row(row).trained)
        if trained is not None:
            return math.inf if trained["problem"] else float(trained["valid_loss"])
        # The row's files may be gone; its line stays.
        line = self.finished().get(row.config_hash)
        if line is None:
            return None
        return math.inf if line.quality is None else line.quality.valid_loss

    def training(self, study: Study) -> set[str]:
        """Keys of the rows that have begun, if a study runs here; for another process, such as `status`."""
        begun = {row.key for row in study.rows if self.of_row(row).run_dir.exists()}
        return begun if is_locked(self.root) else set()

    def finished(self) -> dict[str, StudyRow]:
        """Read the rows that have a line, by config_hash. An incomplete last line is removed.

        Raises:
            UserError: the file is damaged otherwise.
        """
        path = self.root / ROWS
        if not path.exists():
            return {}
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            write_text(path, text[: text.rfind("\n") + 1])
        return {row.config_hash: row for row in read_rows(path)}

    def add(self, row: StudyRow) -> None:
        """Append a row's line and flush it to disk."""
        with open(self.root / ROWS, "a", encoding="utf-8") as file:
            file.write(row.line() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self, rows: list[RowSpec]) -> None:
        """Remove the lines and directories of rows; they begin anew."""
        hashes = {row.config_hash for row in rows}
        kept = [row for key, row in self.finished().items() if key not in hashes]
        write_text(self.root / ROWS, "".join(row.line() + "\n" for row in kept))
        for row in rows:
            self.of_row(row).clear()
