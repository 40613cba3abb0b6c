"""What a study has submitted to SLURM: a directory for each call of sbatch, read by jobs, the client and `status`.

DIR/slurm/0001/  batch.json    the rows, by their index in the array; written before sbatch is called
                 run.sbatch    the batch file
                 job.txt       the job's number, as sbatch said it
                 void          it was not found in the queue: a job of it that begins later does nothing
                 begun-I.json  a job has begun index I: where, and how often SLURM had put it back before
                 ended-I       exit code of a job that ended by itself and for good, with another than 0
                 blame-I.txt   which row could not be measured
                 out-I.txt     what the batch script printed
                 log.txt       what measuring several rows printed

Every file is complete or absent. A later batch with a row counts instead of an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from altup_moe.config.files import write_text
from altup_moe.study.spec import MeasureSpec

BATCH = "batch.json"
BatchKind = Literal["train", "measure"]


@dataclass(frozen=True)
class BatchRow:
    """One row. ``alone``: it is measured once it is trained, on the same nodes."""

    key: str
    seconds: float | None = None
    alone: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows that one call of sbatch submits; all of one shape.

    ``name``: of the job, unlike every other's: by it a job is found whose number was not noted.
    ``kind``: an array that trains a row in each task, or one task that measures the rows together.
    ``after``: keys of the rows whose tasks, of other batches, must have succeeded before.
    """

    name: str
    kind: BatchKind
    nodes: int
    ranks_per_node: int
    threads: int
    rows: tuple[BatchRow, ...]
    measure: MeasureSpec
    after: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Ranks of each row."""
        return self.nodes * self.ranks_per_node

    @property
    def tasks(self) -> int:
        """Tasks of the array."""
        return len(self.rows) if self.kind == "train" else 1

    def index(self, key: str) -> int | None:
        """Index of a row's task; None if it has none here."""
        found = next((n for n, row in enumerate(self.rows) if row.key == key), None)
        return found if found is None or self.kind == "train" else 0


@dataclass(frozen=True)
class BatchDirectory:
    """The directory of a batch."""

    root: Path

    @property
    def script(self) -> Path:
        """The batch file."""
        return self.root / "run.sbatch"

    @property
    def log(self) -> Path:
        """What measuring several rows printed."""
        return self.root / "log.txt"

    @property
    def void(self) -> Path:
        """Its presence keeps jobs from beginning."""
        return self.root / "void"

    def ended(self, index: int) -> Path:
        """File of the exit code with which a task ended for good."""
        return self.root / f"ended-{index}"

    def blame(self, index: int) -> Path:
        """File of the row that could not be measured."""
        return self.root / f"blame-{index}.txt"

    def output(self, index: int) -> Path:
        """What the batch script of a task printed."""
        return self.root / f"out-{index}.txt"

    def begun(self, index: int) -> Path:
        """File of a task's beginning."""
        return self.root / f"begun-{index}.json"

    def write(self, batch: Batch, script: str) -> None:
        """Write the batch file, then the batch: it may be submitted."""
        write_text(self.script, script)
        write_text(self.root / BATCH, json.dumps(asdict(batch)) + "\n")

    def batch(self) -> Batch:
        """The batch. Raises OSError if it was not written to the end."""
        content = json.loads((self.root / BATCH).read_text(encoding="utf-8"))
        rows, after = tuple(BatchRow(**row) for row in content.pop("rows")), tuple(content.pop("after"))
        return Batch(rows=rows, after=after, measure=MeasureSpec(**content.pop("measure")), **content)

    @property
    def job(self) -> str | None:
        """The job's number, if it is known."""
        return _text(self.root / "job.txt")

    def set_job(self, job: str) -> None:
        """Note the job's number."""
        write_text(self.root / "job.txt", job + "\n")

    def ended_with(self, index: int) -> int | None:
        """The exit code with which a task ended for good; None if it did not."""
        text = _text(self.ended(index))
        return int(text) if text else None

    def blamed(self, index: int) -> str | None:
        """Key of the row that could not be measured."""
        return _text(self.blame(index))

    def beginning(self, index: int) -> dict[str, Any] | None:
        """What a task wrote when it began, the last time."""
        text = _text(self.begun(index))
        return json.loads(text) if text else None


@dataclass(frozen=True)
class Place:
    """Where the last batch of a kind with a row has it."""

    directory: BatchDirectory
    batch: Batch
    index: int

    @property
    def task(self) -> str | None:
        """Name of its task in SLURM, as 12_3; None if the job's number is not known."""
        job = self.directory.job
        return None if job is None else f"{job}_{self.index}"

    @property
    def row(self) -> BatchRow:
        """The row of its task; of a batch that measures, the first one."""
        return self.batch.rows[self.index]


@dataclass(frozen=True)
class Batches:
    """All of a study's. ``root``: DIR/slurm, which need not exist."""

    root: Path

    def __iter__(self) -> Iterator[tuple[BatchDirectory, Batch]]:
        """In the order of their submission."""
        for path in sorted(self.root.glob(f"[0-9]*/{BATCH}")):
            directory = BatchDirectory(path.parent)
            yield directory, directory.batch()

    def places(self, kind: BatchKind) -> dict[str, Place]:
        """Key of each row -> where it was submitted last for that; batches that are void have none."""
        found = {}
        for directory, batch in self:
            if batch.kind == kind and not directory.void.exists():
                for row in batch.rows:
                    index = batch.index(row.key)
                    assert index is not None
                    found[row.key] = Place(directory, batch, index)
        return found

    def new(self) -> BatchDirectory:
        """Make the directory of the next batch."""
        self.root.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in self.root.glob("[0-9]*")), default=0)
        directory = BatchDirectory(self.root / f"{number:04d}")
        directory.root.mkdir()
        return directory

    def forget(self, keys: Collection[str]) -> None:
        """Forget how tasks of these rows ended; they begin anew."""
        places = [place for kind in get_args(BatchKind) for key, place in self.places(kind).items() if key in keys]
        for place in places:
            with suppress(FileNotFoundError):
                place.directory.ended(place.index).unlink()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
