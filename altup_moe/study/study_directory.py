"""A study's directory. Every file is whole or not there, so a study that is killed at any moment goes on.

DIR/study.yaml              the rows of the study, resolved
DIR/rows.jsonl              a line for every finished row (records.py)
DIR/lock                    held while a study runs here
DIR/data/                   tokens, shared by the rows
DIR/rows/NAME-sSEED-HASH/   config.yaml   what the row trains
                            run/          its run directory
                            log.txt       what its processes printed
                            trained.json  written once it is trained and evaluated
                            steps-0.json, texts-0.json ... what each round measured
                            failure.txt   why it failed, in one line
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from altup_moe.config import RunConfig, UserError
from altup_moe.config.files import write_text
from altup_moe.config.load import load_config, read_yaml, save_config
from altup_moe.config.run_directory import config_file, metrics_file
from altup_moe.study.records import StudyRow, read_rows
from altup_moe.study.spec import Budget, MeasureSpec, RowSpec, Study

ROWS = "rows.jsonl"
MeasureKind = Literal["steps", "texts"]
"""What is measured: training steps, and reading and writing text."""


@dataclass(frozen=True)
class RowDirectory:
    """The directory of one row."""

    root: Path

    @property
    def config(self) -> Path:
        """What the row trains."""
        return config_file(self.root)

    @property
    def run_dir(self) -> Path:
        """The row's run."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """What its processes printed."""
        return self.root / "log.txt"

    @property
    def trained(self) -> Path:
        """Figures of the trained model, once there are any."""
        return self.root / "trained.json"

    @property
    def failure(self) -> Path:
        """Why a process of the row failed."""
        return self.root / "failure.txt"

    def measured(self, kind: MeasureKind, number: int) -> Path:
        """What a round measured."""
        return self.root / f"{kind}-{number}.json"

    def metrics(self) -> tuple[dict[str, Any], ...]:
        """The run's record of each step so far, without a line that is being written."""
        return whole_lines(metrics_file(self.run_dir))

    def clear(self) -> None:
        """Forget the row's run and figures: it begins anew."""
        shutil.rmtree(self.root, ignore_errors=True)


def whole_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """Objects of a file of JSON lines up to the first that is not whole; none where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return _lines(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)
def _lines(path: Path, size: int, changed: int) -> tuple[dict[str, Any], ...]:
    # A table that is drawn every second reads only what has changed.
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            found.append(json.loads(line))
    except (OSError, ValueError):
        pass
    return tuple(found)


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """An object that `write_json` wrote, or None."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object, whole or not at all."""
    write_text(path, json.dumps(content, allow_nan=False) + "\n")


@dataclass(frozen=True)
class StudyDirectory:
    """The directory of a study."""

    root: Path

    def of_row(self, row: RowSpec) -> RowDirectory:
        """Where a row's files lie."""
        return RowDirectory(self.root / "rows" / row.key)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in this directory; made if missing.

        Raises:
            UserError: another study runs here, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = open(self.root / "lock", "a")  # noqa: SIM115 (open while the study runs)
        except OSError as error:
            raise UserError(f"{self.root}: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.root}: another study runs here; wait for it, or name another --dir") from None
            yield

    def config(self, row: RowSpec) -> RunConfig:
        """A row's configuration with its run directory here, and the weights that it starts from.

        Tokens are shared by all rows unless data.cache is given.
        """
        config, checkpoint = row.config, row.config.checkpoint
        if row.after is not None:
            checkpoint = replace(checkpoint, initial_load_path=str(self.of_row(row.after).run_dir))
        log = replace(config.log, run_dir=str(self.of_row(row).run_dir))
        data = replace(config.data, cache=config.data.cache or str(self.root / "data"))
        return replace(config, log=log, data=data, checkpoint=checkpoint)

    def lay_out(self, study: Study) -> None:
        """study.yaml, and every row's configuration."""
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
            }
            for row in study.rows
        ]
        for row in study.rows:
            # A row that is finished stays as it was written.
            if not self.of_row(row).trained.exists():
                save_config(self.config(row), self.of_row(row).config)
        content = {"name": study.name, "measure": dict(vars(study.measure)), "rows": rows}
        write_text(self.root / "study.yaml", yaml.safe_dump(content, sort_keys=False))

    def study(self) -> Study:
        """The study that was laid out here last.

        Raises:
            UserError: there is none.
        """
        path = self.root / "study.yaml"
        if not path.is_file():
            raise UserError(f"{self.root}: holds no study; the directory that `run` writes to would fit")
        content = read_yaml(path)
        rows: dict[str, RowSpec] = {}
        for written in content["rows"]:
            rows[written["directory"]] = self._read_row(written, rows.get(written.get("after")))
        return Study(content["name"], list(rows.values()), MeasureSpec(**content["measure"]))

    def _read_row(self, written: dict[str, Any], after: RowSpec | None) -> RowSpec:
        config = load_config(RowDirectory(self.root / written["directory"]).config)
        if after is not None:
            config = replace(config, checkpoint=replace(config.checkpoint, initial_load_path=None))
        run = {key: written[key] for key in ("name", "family", "seed", "ranks", "launcher", "rate", "threads")}
        budget = Budget(**written["budget"])
        return RowSpec(overrides=written["set"], config=config, budget=budget, after=after, **run)

    def training(self, study: Study) -> set[str]:
        """Rows that have begun, while a study runs here: what somebody beside it can see."""
        try:
            with self.locked():
                return set()
        except UserError:
            return {row.key for row in study.rows if self.of_row(row).run_dir.exists()}

    def finished(self) -> dict[str, StudyRow]:
        """Rows that have a line, by config_hash. A last line that was cut short by a kill is removed.

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
        """Append a row's line, and have it on the disk."""
        with open(self.root / ROWS, "a", encoding="utf-8") as file:
            file.write(row.line() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def forget(self, rows: list[RowSpec]) -> None:
        """Remove rows' lines and directories: they begin anew."""
        hashes = {row.config_hash for row in rows}
        kept = [row for key, row in self.finished().items() if key not in hashes]
        write_text(self.root / ROWS, "".join(row.line() + "\n" for row in kept))
        for row in rows:
            self.of_row(row).clear()
