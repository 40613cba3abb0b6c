"""What a job of a study does, on its first node: `python -m altup_moe.study.slurm.job_main BATCH`; not for users.

It starts the steps of its allocation one after the other: a row is trained, then measured if it is alone in its layout,
each round in new processes. Whether the job comes back after a failure is slurm.sbatch's to decide, by the exit code.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from altup_moe.config.exit_codes import EXIT_FAILED, EXIT_STOPPED
from altup_moe.config.files import write_text
from altup_moe.config.locks import is_locked
from altup_moe.parallel.start_ranks import start_process
from altup_moe.study import worker_main
from altup_moe.study.job_pool import JOB_POLL_SECONDS, noted_signals
from altup_moe.study.slurm.batches import Batch, BatchDirectory
from altup_moe.study.study_directory import KINDS, MeasureKind, RowDirectory, read_json_or_none, write_json
from altup_moe.study.worker_processes import launch_command, own_command, worker_environment

NOT_SAVED = 128 + signal.SIGTERM
"""Exit code of what was told to stop and had nothing to save: slurm.sbatch puts the job back, a limited number of
times."""
AGAIN = (77, 129, 130, 138, 143)
"""Exit codes after which slurm.sbatch puts a job back: they say nothing about a row."""
LOCK_SECONDS = 120.0
"""How long a row waits for processes of its earlier job: they may outlive the daemon of their node."""


def step_command(
    arguments: Sequence[str], nodes: int, ranks_per_node: int, rendezvous: str, everywhere: bool
) -> list[str]:
    """The command line of a step that runs `worker_main` with these arguments.

    Args:
        rendezvous: HOST:PORT where the nodes meet.
        everywhere: on all ranks; else on one.
    """
    own = own_command(arguments)
    if not everywhere or nodes * ranks_per_node == 1:
        return [*_srun(1), *own]
    size = ["--nodes", str(nodes), "--ranks-per-node", str(ranks_per_node), "--rdzv", rendezvous]
    return [*_srun(nodes), *launch_command("torchrun"), *size, "--", *own]


def _srun(nodes: int) -> list[str]:
    # The nodes end by themselves: the first to exit with 75 must not cost the rest their saving (SLURM_WAIT).
    size = [f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return ["srun", *size, "--kill-on-bad-exit=0"]


@dataclass
class RowJob:
    """One task of a batch. Mutable: it counts its steps.

    ``signals``: numbers of the signals received so far. ``rendezvous``: HOST:PORT where nodes meet; each step takes the
    next port.
    """

    directory: BatchDirectory
    batch: Batch
    index: int
    signals: list[int]
    rendezvous: str
    steps: int = field(default=0, init=False)

    def run(self) -> int:
        """Do what is not done yet. Returns the job's exit code."""
        begun = {"restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0")), "node": platform.node()}
        write_json(self.directory.begun(self.index), {"job": os.environ.get("SLURM_ARRAY_JOB_ID", ""), **begun})
        # In this order: whoever writes `void` looks for the beginning afterwards.
        if self.directory.void.exists():
            print("a later job has these rows: nothing to do", flush=True)
            return 0
        self.directory.blame(self.index).unlink(missing_ok=True)
        if self.batch.kind == "measure":
            return self._measure([row.key for row in self.batch.rows])
        row = self.batch.rows[self.index]
        code = self._train(row.key, row.seconds)
        trained = read_json_or_none(self._row(row.key).trained)
        if code or not row.alone or trained is None or trained["problem"]:
            return code
        return self._measure([row.key])

    def _row(self, key: str) -> RowDirectory:
        return RowDirectory(self.directory.root.parents[1] / "rows" / key)

    def _train(self, key: str, seconds: float | None) -> int:
        row = self._row(key)
        if row.trained.exists():
            return 0
        deadline = time.monotonic() + LOCK_SECONDS
        while is_locked(row.run_dir):
            if self.signals or time.monotonic() > deadline:
                print(f"{row.run_dir}: another process trains it", flush=True)
                return NOT_SAVED
            time.sleep(JOB_POLL_SECONDS)
        row.failure.unlink(missing_ok=True)
        code = self._step(worker_main.train_arguments(row.root, seconds), row.log)
        return code or (0 if row.trained.exists() else EXIT_FAILED)

    def _measure(self, keys: list[str]) -> int:
        """All rounds of some rows, as `study.run` does them on one machine."""
        for number in range(self.batch.measure.rounds):
            for kind in KINDS:
                todo = [key for key in keys if not self._row(key).measured(kind, number).exists()]
                if todo and (code := self._round(kind, number, todo)):
                    return code
        return 0

    def _round(self, kind: MeasureKind, number: int, keys: list[str]) -> int:
        rows = [self._row(key) for key in keys]
        for row in rows:
            row.failure.unlink(missing_ok=True)
        log = self.directory.log if self.batch.kind == "measure" else rows[0].log
        arguments = worker_main.measure_arguments(kind, number, self.batch.measure, [row.root for row in rows])
        code = self._step(arguments, log, everywhere=kind == "steps")
        missing = [key for key in keys if not self._row(key).measured(kind, number).exists()]
        if not missing:
            return 0
        if self.signals:
            return NOT_SAVED
        if len(keys) == 1:
            write_text(self.directory.blame(self.index), keys[0] + "\n")
        if len(keys) == 1 or code in AGAIN:
            return code or EXIT_FAILED
        print(f"measuring {len(keys)} rows together failed (exit code {code}); each alone", flush=True)
        return next((code for key in missing if (code := self._round(kind, number, [key]))), 0)

    def _step(self, arguments: Sequence[str], log: Path, everywhere: bool = True) -> int:
        """Run a step to its end. A signal is passed on as SIGUSR1: srun gives that to the ranks, and others end it."""
        if self.signals:
            return EXIT_STOPPED
        host, _, port = self.rendezvous.rpartition(":")
        meeting = f"{host}:{int(port) + self.steps}"
        self.steps += 1
        batch = self.batch
        command = step_command(arguments, batch.nodes, batch.ranks_per_node, meeting, everywhere)
        process = start_process(command, worker_environment(batch.threads), log)
        told = 0
        while (code := process.poll()) is None:
            if len(self.signals) > told:
                told = len(self.signals)
                process.send_signal(signal.SIGUSR1)
            time.sleep(JOB_POLL_SECONDS)
        return code if code >= 0 else 128 - code


def main(argv: Sequence[str]) -> int:
    """Do the task of the array that this job is."""
    directory = BatchDirectory(Path(argv[0]))
    index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    with noted_signals() as signals:
        return RowJob(directory, directory.batch(), index, signals, os.environ["RENDEZVOUS"]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
