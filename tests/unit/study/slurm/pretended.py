"""A pretended SLURM: sbatch, squeue and scancel keep jobs in files, and a test says what becomes of their tasks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from altup_moe.config.files import write_text
from altup_moe.study.job_pool import StoppedBySignal
from altup_moe.study.read_study import load_study
from altup_moe.study.records import StudyRow
from altup_moe.study.run import run_study
from altup_moe.study.slurm.batches import Batch, BatchDirectory
from altup_moe.study.slurm.client import Client, OnSlurm
from altup_moe.study.spec import Study
from altup_moe.study.study_directory import KINDS, RowDirectory, StudyDirectory, write_json
from tests.unit.study.test_study_spec import SMALL

PROGRAM = """#!{python} -S
import json, pathlib, re, sys
here, name = pathlib.Path(__file__).parents[1], pathlib.Path(__file__).name
with (here / "calls").open("a") as calls:
    calls.write(name + "\\n")
for word in ("away", "full", "refuse"):
    if (here / word).exists() and (word == "away" or name == "sbatch"):
        sys.exit(f"{{name}}: error: " + (here / word).read_text())
jobs = here / "jobs"
if name == "sbatch":
    text = pathlib.Path(sys.argv[-1]).read_text()
    flag = lambda key: (re.search(f"^#SBATCH '?--{{key}}=([^'\\\\n]*)", text, re.M) or [None, None])[1]
    last, _, most = flag("array").partition("-")[2].partition("%")
    number = str(len(list(jobs.iterdir())) + 1)
    job = {{"name": flag("job-name"), "after": flag("dependency"), "most": most, "script": sys.argv[-1]}}
    job["tasks"] = ["PENDING"] * (int(last) + 1)
    (jobs / f"{{number}}.json").write_text(json.dumps(job))
    print(number)
for file in sorted(jobs.iterdir()):
    job = json.loads(file.read_text())
    for index, state in enumerate(job["tasks"]):
        if name == "squeue" and state != "PURGED":
            print(f"{{file.stem}}|{{index}}|{{state}}|{{job['name']}}|{{'Priority' if state == 'PENDING' else 'None'}}")
        if name == "scancel" and {{file.stem, f"{{file.stem}}_{{index}}"}} & set(sys.argv[1:]):
            job["tasks"][index] = "CANCELLED"
            file.write_text(json.dumps(job))
"""


@dataclass
class PretendedSlurm:
    """Its state is in `directory`; tests change it between two looks of the client.

    ``acts``: name of a row -> what its task does instead of training it and being measured.
    """

    directory: Path
    acts: dict[str, Callable[[PretendedSlurm, str, int, Batch, BatchDirectory], str]] = field(default_factory=dict)
    between: list[Callable[[], None]] = field(default_factory=list)
    """Called one after the other, each before a look of the client."""
    begun: list[str] = field(default_factory=list)
    """What tasks did, in order: `train NAME`, `measure NAME+NAME`."""
    looks: int = 0

    @property
    def root(self) -> Path:
        """Directory of the study."""
        return self.directory / "study"

    def study(self, rows: list[dict[str, Any]], **changes: Any) -> Study:
        """A study on it; rows have different learning rates."""
        made = [{"set": {"optim.learning_rate": 0.1 * (n + 1)}, **row} for n, row in enumerate(rows)]
        file = self.directory / "small.yaml"
        content = {**SMALL, "seeds": [1], "launcher": "slurm", "rows": made, "measure": {"rounds": 1}, **changes}
        file.write_text(yaml.safe_dump(content))
        return load_study(file)

    def run(self, study: Study, **options: Any) -> int:
        """`altup-moe study run`."""
        retry = options.pop("retry_failed", False)
        return run_study(study, self.root, None, retry, OnSlurm(**options))

    def jobs(self) -> dict[str, dict[str, Any]]:
        """What was submitted."""
        files = sorted((self.directory / "jobs").iterdir(), key=lambda file: int(file.stem))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def rows_of(self, job: str) -> list[str]:
        """Names of the rows of a job."""
        return [row.key.rpartition("-s")[0] for row in self.batch(job)[1].rows]

    def batch(self, job: str) -> tuple[BatchDirectory, Batch]:
        directory = BatchDirectory(Path(self.jobs()[job]["script"]).parent)
        return directory, directory.batch()

    def set(self, job: str, index: int, state: str) -> None:
        """Change the state of a task."""
        content = self.jobs()[job]
        content["tasks"][index] = state
        (self.directory / "jobs" / f"{job}.json").write_text(json.dumps(content))

    def lines(self) -> dict[str, StudyRow]:
        """Lines by name."""
        return {row.name: row for row in StudyDirectory(self.root).finished().values()}

    def calls(self, program: str) -> int:
        return (self.directory / "calls").read_text().split().count(program)

    def tick(self) -> None:
        """Time passes: what a test wants to happen now, then all tasks that may run do."""
        if self.between:
            self.between.pop(0)()
        for job, content in self.jobs().items():
            tasks = [task.split("_") for task in (content["after"] or "afterok").split(":")[1:]]
            before = {self.jobs()[number]["tasks"][int(index)] for number, index in tasks}
            for index, state in enumerate(content["tasks"]):
                if state == "PENDING" and before & {"FAILED", "CANCELLED"}:
                    self.set(job, index, "CANCELLED")
                elif state == "PENDING" and before <= {"COMPLETED", "PURGED"}:
                    self.set(job, index, self._runs(job, index))

    def _runs(self, job: str, index: int) -> str:
        directory, batch = self.batch(job)
        if directory.void.exists():
            return "COMPLETED"
        write_json(directory.begun(index), {"job": job, "restarts": 0, "node": "n0"})
        rows = batch.rows if batch.kind == "measure" else batch.rows[index : index + 1]
        names = [row.key.rpartition("-s")[0] for row in rows]
        self.begun.append(f"{batch.kind} {'+'.join(names)}")
        act = self.acts.get(f"{batch.kind} {names[0]}")
        if act is not None:
            return act(self, job, index, batch, directory)
        for row in rows:
            one = RowDirectory(self.root / "rows" / row.key)
            if batch.kind == "train":
                train(one)
            if batch.kind == "measure" or row.alone:
                measure(one)
        return "COMPLETED"

    def ends(self, code: int, says: str = "") -> Callable[..., str]:
        """A task that ends by itself with an exit code."""

        def act(slurm: PretendedSlurm, job: str, index: int, batch: Batch, directory: BatchDirectory) -> str:
            write_text(directory.ended(index), f"{code}\n")
            if says:
                row = RowDirectory(slurm.root / "rows" / batch.rows[index].key)
                write_text(row.failure, says + "\n")
            return "FAILED"

        return act


def stays(state: str) -> Callable[..., str]:
    """A task that is found in one state, with nothing done."""
    return lambda *_: state


def train(row: RowDirectory, loss: float = 2.0) -> None:
    """What training writes."""
    row.run_dir.mkdir(parents=True, exist_ok=True)
    line = {"step": 1, "lm_loss": 2.0, "step_seconds": 0.1, "memory_gib": 0.5}
    (row.run_dir / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    machine = {"processor": "of the node", "cores": 3, "torch": "2", "system": "there"}
    figures = {"valid_loss": loss, "valid_bits_per_byte": 1.0, "experts": None, "problem": None, "device": "cpu"}
    write_json(row.trained, {**figures, "wall_seconds": 0.1, "machine": machine})


def measure(row: RowDirectory) -> None:
    """What measuring writes."""
    for kind in KINDS:
        figures = {"seconds": [0.1]} if kind == "steps" else {"prefill_seconds": [0.1], "decode_seconds": [0.1]}
        write_json(row.measured(kind, 0), figures)


def pretended(directory: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedSlurm:
    """Put a pretended SLURM into PATH. The client looks at it without waiting."""
    slurm = PretendedSlurm(directory)
    (directory / "jobs").mkdir()
    (directory / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        program = directory / "bin" / name
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(
        "altup_moe.study.worker_processes.worker_command", lambda words, row: [sys.executable, "-c", ""]
    )

    def no_wait(client: Client) -> None:
        slurm.looks += 1
        assert slurm.looks < 200, "the client waits for ever"
        slurm.tick()
        if client.run.pool.signals:
            raise StoppedBySignal

    monkeypatch.setattr(Client, "_wait", no_wait)
    return slurm
