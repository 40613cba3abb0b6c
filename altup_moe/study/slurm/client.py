"""A study's rows as jobs of SLURM: submit them, watch them, write their lines.

The client may end or be killed at any moment: jobs go on by themselves, and the same command finds them again. Before
sbatch is called the batch stands in the study's directory, under a name that no other job has. If the job's number was
not noted, the job is found by that name; if it is not found, the batch is void, so that a job of it that begins later
does nothing, and its rows are submitted anew.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altup_moe.config import UserError
from altup_moe.config.files import write_text
from altup_moe.parallel.start_ranks import last_line
from altup_moe.study.collect_row import done_row
from altup_moe.study.job_pool import JOB_POLL_SECONDS, StoppedBySignal
from altup_moe.study.slurm import commands
from altup_moe.study.slurm.batch_file import batch_file
from altup_moe.study.slurm.batches import Batch, Batches, BatchRow, Place
from altup_moe.study.slurm.commands import QueuedTask, SlurmAwayError, SlurmFullError
from altup_moe.study.slurm.phases import phase_of
from altup_moe.study.slurm.submission import Submission, alone, shape_of, submissions, to_measure
from altup_moe.study.spec import RowSpec
from altup_moe.study.study_directory import read_json_or_none
from altup_moe.study.under_way import StudyRun, measured_together, prepare
from altup_moe.study.worker_processes import failure_reason

MISSED_POLLS = 6
"""How often squeue must not show a job whose result is not there, until it is lost: files of other nodes come late."""


@dataclass(frozen=True)
class OnSlurm:
    """What the command asks of launcher slurm."""

    max_running: int | None = None
    """Rows in the cluster at a time."""
    cancel_on_interrupt: bool = False
    """A signal cancels the jobs, which save."""


class Client:
    """Watches and submits until each row has its line, or is lost. Mutable."""

    def __init__(self, run: StudyRun, options: OnSlurm) -> None:
        self.run, self.options = run, options
        self.batches = Batches(run.directory.slurm.absolute())
        self.lost: set[str] = set()
        """Rows whose jobs ended without a result while this client watched them."""
        self._training: dict[str, Place] = {}
        self._measuring: dict[str, Place] = {}
        self._tasks: dict[str, QueuedTask] = {}
        """The queue when it was looked at last."""
        self._new: set[str] = set()
        """Tasks submitted since then."""
        self._live: dict[str, str] = {}
        """Key of each row in the queue, or about to be missed there -> its task."""
        self._watched: set[str] = set()
        """Tasks that this client has submitted, or seen in the queue."""
        self._missed: dict[str, int] = {}
        self._said: dict[str, str] = {}
        """What was said last of each row, or of SLURM."""
        self._untold: set[str] = set()
        """Rows whose training's end is still to be said."""

    def work(self) -> None:
        """Train and measure all rows.

        Raises:
            StoppedBySignal: a signal came; the jobs go on, or are cancelled.
            UserError: SLURM does not answer at the start, or refuses a job.
        """
        self.run.phases = {}
        tasks: dict[str, QueuedTask] | None
        try:
            tasks = commands.queue()
        except SlurmAwayError as error:
            raise UserError(f"launcher slurm: {error}") from None
        try:
            while True:
                if tasks is not None:
                    self._adopt(tasks)
                    self._look(tasks)
                    submitted = self._submit()
                    if not submitted and not self._live:
                        return
                self._wait()
                tasks = self._ask()
        except StoppedBySignal:
            self._leave()
            raise

    # --------------------------------------------------------------------------------------------------------- looking

    def _ask(self) -> dict[str, QueuedTask] | None:
        try:
            tasks = commands.queue()
        except SlurmAwayError as error:
            self._say(
                "slurm", "away", f"SLURM does not answer ({error}); its jobs go on, and so does this when it does"
            )
            return None
        if self._said.pop("slurm", None) == "away":
            self.run.table.say("SLURM answers again")
        return tasks

    def _wait(self) -> None:
        deadline = time.monotonic() + self.run.study.cluster.poll_seconds
        while time.monotonic() < deadline:
            if self.run.pool.signals:
                raise StoppedBySignal
            self.run.draw()
            time.sleep(JOB_POLL_SECONDS)

    def _adopt(self, tasks: dict[str, QueuedTask]) -> None:
        """Find the jobs of batches whose number was not noted: this client, or an earlier one, was cut short."""
        by_name = {task.job_name: task.job for task in tasks.values()}
        for directory, batch in self.batches:
            if directory.job is not None or directory.void.exists():
                continue
            job = by_name.get(batch.name)
            if job is None:
                write_text(directory.void, "not found in the queue\n")
                # One that has begun before it could see that is this batch's job all the same.
                begun = filter(None, map(directory.beginning, range(batch.tasks)))
                job = next((one["job"] for one in begun), None)
                if job is None:
                    continue
                directory.void.unlink()
            directory.set_job(job)
            self.run.table.say(f"job {job} has {len(batch.rows)} row(s) of this study already")

    def _look(self, tasks: dict[str, QueuedTask]) -> None:
        """Settle the rows that have ended; note what the others do. Files are read after the queue: a job that has left
        it has written them."""
        self._training, self._measuring = self.batches.places("train"), self.batches.places("measure")
        self._tasks, self._live, self._new = tasks, {}, set()
        phases = self.run.phases = {}
        for row in self.run.pending:
            place = self._training.get(row.key)
            if self.run.directory.of_row(row).trained.exists():
                place = self._measuring.get(row.key, place)
            if self._settled(row, place) or place is None:
                continue
            task = tasks.get(place.task or "")
            phases[row.key] = phase_of(place, task)
            if task is not None and task.live:
                self._seen(row, place, task)
            elif not self._is_done_with(row, place):
                self._miss(row, place, task)
        if self.run.study.grow is not None and self.run.grow():
            self._look(tasks)

    def _settled(self, row: RowSpec, place: Place | None) -> bool:
        """Write the line of a row that has ended; whether it has."""
        run, row_directory = self.run, self.run.directory.of_row(row)
        trained = read_json_or_none(row_directory.trained)
        if trained is not None and trained["problem"]:
            run.fail(row, trained["problem"])
            return True
        if trained is not None:
            if row.key in self._untold:
                self._untold.discard(row.key)
                run.say_trained(row, trained["valid_loss"])
            if row.role == "tuning" or row_directory.all_measured(run.study.measure.rounds):
                run.finish(row, done_row(run.study, row, run.directory))
                return True
        elif row.before is not None:
            line = run.finished.get(row.before.config_hash)
            if line is not None and line.status == "failed":
                why = str(line.reason)
                first = why if why.startswith("not trained: ") else f"not trained: {row.before.key} failed: {why}"
                run.fail(row, first)
                return True
        return place is not None and self._failed(row, place, trained)

    def _failed(self, row: RowSpec, place: Place, trained: dict[str, Any] | None) -> bool:
        """Keep a row whose job ended by itself, and for good; whether it has."""
        code = place.directory.ended_with(place.index)
        blamed = place.directory.blamed(place.index)
        if code is None or blamed not in (None, row.key):
            return False
        row_directory = self.run.directory.of_row(row)
        log = place.directory.log if place.batch.kind == "measure" else row_directory.log
        begun = place.directory.beginning(place.index) is not None
        # Before that, lines of the cluster's setup have failed, or SLURM's programs are missing there.
        output = place.directory.output(place.index)
        reason = failure_reason(code, row_directory, log) if begun else f"its job: {last_line(output) or code}"
        self.run.fail(row, reason if trained is None else f"measuring: {reason}")
        return True

    def _is_done_with(self, row: RowSpec, place: Place) -> bool:
        """Whether the job of a row has done what it was for, and the row waits to be measured with others."""
        if place.batch.kind == "measure":
            return place.directory.ended_with(place.index) is not None  # another row was to blame
        return not place.row.alone and self.run.directory.of_row(row).trained.exists()

    def _seen(self, row: RowSpec, place: Place, task: QueuedTask) -> None:
        """A row's task is in the queue."""
        self._live[row.key] = task.task
        self._watched.add(task.task)
        self._missed.pop(row.key, None)
        if place.batch.kind == "train" and not self.run.directory.of_row(row).trained.exists():
            self._untold.add(row.key)
        beginning = place.directory.beginning(place.index)
        if task.waits and beginning is not None:
            again = f"{row.name} seed {row.seed}: job {task.task} waits to go on ({task.reason})"
            self._say(row.key, f"requeued {beginning['restarts']}", again)
        elif "eld" in task.reason or "Bad" in task.reason:
            stuck = f"{row.name} seed {row.seed}: job {task.task} will not start: {task.reason}"
            self._say(row.key, task.reason, stuck)

    def _miss(self, row: RowSpec, place: Place, task: QueuedTask | None) -> None:
        """A row's task has left the queue, and there is no result. If this client has not watched it, it is submitted
        anew."""
        name = place.task
        if name not in self._watched or name is None or row.key in self.lost:
            return
        # What it waited for came otherwise, and SLURM has removed it.
        waited = place.batch.after and place.directory.beginning(place.index) is None
        if waited and not any(key in self._live for key in place.batch.after):
            self._watched.discard(name)
            return
        self._missed[row.key] = self._missed.get(row.key, 0) + 1
        if self._missed[row.key] < MISSED_POLLS:
            self._live[row.key] = name
            return
        self.lost.add(row.key)
        state = "it is not in the queue any more" if task is None else task.state
        said = last_line(place.directory.output(place.index))
        told = f": {said}" if said and (task is None or task.state != "CANCELLED") else ""
        self.run.table.say(f"{row.name} seed {row.seed}: job {name} ended without a result ({state}){told}")

    # ------------------------------------------------------------------------------------------------------ submitting

    def _submit(self) -> bool:
        """Submit what is due. Returns whether something was, or is to be later without an event of the queue."""
        run, most = self.run, self.options.max_running
        study, grows = run.study, run.study.grow is not None
        pending = [row.key for row in run.pending]
        trained = {row.key for row in study.rows if run.directory.of_row(row).trained.exists()}
        groups = measured_together([row for row in study.rows if row.role == "trained"], "steps")
        # No job waits for one that has left the queue, until it is known what became of it.
        doubtful = {*self._live} & {*self._missed}
        free = [row for row in run.pending if row.key not in {*self._live, *self.lost, *trained}]
        free = [row for row in free if row.before is None or row.before.key not in doubtful]
        due = submissions(free, self._live, trained, study.cluster, most)
        selves = alone(groups, grows)
        try:
            prepare(run, [row for each in due for row in each.rows])
            for each in due:
                self._sbatch(each, selves)
            if any(row.role == "tuning" for row in run.pending):
                return False
            training = {*self._live} - trained - doubtful
            for each in to_measure(groups, pending, trained, training, grows, ahead=most is None):
                if not self._is_measured(each.rows) and (most is None or len(set(self._live.values())) < most):
                    self._sbatch(each, set())
        except SlurmAwayError as error:
            self._say(
                "slurm", "away", f"SLURM does not answer ({error}); its jobs go on, and so does this when it does"
            )
            return True
        except SlurmFullError as error:
            if not self._live:
                raise UserError(str(error)) from None
            self._say("full", str(error), f"SLURM takes no more jobs now ({error}); the others follow")
        return False

    def _is_measured(self, rows: Sequence[RowSpec]) -> bool:
        """Whether a job that measures some of these rows is in the queue, or was lost."""
        own = (place for row in rows if row.key in self._live and (place := self._training.get(row.key)))
        alone_now = any(place.row.alone for place in own)
        return alone_now or bool(self._measuring_tasks(rows)) or any(row.key in self.lost for row in rows)

    def _measuring_tasks(self, rows: Sequence[RowSpec]) -> set[str]:
        """Tasks that measure some of these rows, or will."""
        found = {place.task for row in rows if (place := self._measuring.get(row.key))} - {None}
        live = {task for task, queued in self._tasks.items() if queued.live} | {*self._live.values()}
        return {task for task in found if task in live}

    def _sbatch(self, wanted: Submission, selves: set[str]) -> None:
        """Submit one batch; its rows are live then."""
        study, first, kind = self.run.study, wanted.rows[0], wanted.kind
        nodes, ranks, threads = shape_of(first, study.cluster)
        rows = tuple(
            BatchRow(row.key, row.budget.seconds, kind == "train" and row.key in selves) for row in wanted.rows
        )
        name = f"{study.name}-{uuid.uuid4().hex[:12]}"
        batch = Batch(name, kind, nodes, ranks, threads, rows, study.measure, wanted.after)
        directory = self.batches.new()
        after = [self._live[key] for key in wanted.after]
        directory.write(batch, batch_file(batch, study.cluster, directory.root, after, wanted.most))
        try:
            job = commands.submit(directory.script)
        except (SlurmFullError, UserError):
            write_text(directory.void, "SLURM refused it\n")
            raise
        directory.set_job(job)
        for index, row in enumerate(wanted.rows):
            task = f"{job}_{index if kind == 'train' else 0}"
            self._live.setdefault(row.key, task)
            self._new.add(task)
            self._watched.add(task)
            self._untold |= {row.key} if kind == "train" else set()
            assert self.run.phases is not None
            self.run.phases[row.key] = "queued"
        names = ", ".join(f"{row.name} seed {row.seed}" for row in wanted.rows[:4])
        more = f" and {len(rows) - 4} more" if len(rows) > 4 else ""
        size = f"{nodes} node{'s' if nodes > 1 else ''}" + (" each" if batch.tasks > 1 else "")
        waits = f", after {commands.numbers(after)}" if after else ""
        self.run.table.say(f"job {job} {kind}s {names}{more}, on {size}{waits}")

    # --------------------------------------------------------------------------------------------------------- leaving

    def _leave(self) -> None:
        """Say what becomes of the jobs when a signal ends this command."""
        tasks = sorted({*self._live.values(), *self._measuring_tasks(self.run.pending), *self._new})
        if not tasks:
            return
        if not self.options.cancel_on_interrupt:
            ends = "the same command shows them again, scancel ends them"
            self.run.table.say(f"jobs go on in SLURM: {commands.numbers(tasks)}; {ends}")
            return
        problem = commands.cancel(tasks)
        told = "cancelled, they save" if problem is None else f"not cancelled: {problem}"
        self.run.table.say(f"jobs {commands.numbers(tasks)}: {told}")

    def _say(self, what: str, state: str, line: str) -> None:
        """Say a line once as long as nothing else happens to what it is about."""
        if self._said.get(what) != state:
            self._said[what] = state
            self.run.table.say(line)
