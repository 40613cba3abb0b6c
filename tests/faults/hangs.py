"""Starts ranks of `tests.faults.hanging`, and waits for what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from altup_moe.config import RunConfig
from altup_moe.doctor.network import free_port
from tests.distributed.ranks import start_ranks
from tests.distributed.runs import text_run
from tests.faults import hanging as rank
from tests.processes import running

TIMEOUT = 3.0
"""train.hang_timeout of these runs."""
PATIENCE = 300.0
"""Seconds after which a test fails; not a figure."""


@dataclass(frozen=True)
class Ranks:
    """Two ranks that run: their processes, the configuration, and the file that both write to."""

    processes: Sequence[Any]
    config: RunConfig
    output: Path

    def codes(self) -> list[int]:
        """Exit codes of all, once all have ended."""
        deadline = time.monotonic() + PATIENCE
        while None in (codes := [_code(process) for process in self.processes]):
            assert time.monotonic() < deadline, f"{codes}\n{self.text()}"
            time.sleep(0.05)
        return [code for code in codes if code is not None]

    def text(self) -> str:
        """What they have printed."""
        return self.output.read_text(encoding="utf-8")

    def wait_for_steps(self, steps: int) -> None:
        """Until so many steps are recorded."""
        file, deadline = Path(self.config.log.run_dir) / "metrics.jsonl", time.monotonic() + PATIENCE
        while not file.is_file() or file.read_bytes().count(b"\n") < steps:
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.05)

    def hang(self) -> str:
        """The one report that the run directory holds."""
        assert not self.left()
        (file,) = (Path(self.config.log.run_dir) / "watchdog").iterdir()
        assert file.name.startswith("hang_")
        return file.read_text(encoding="utf-8")

    def left(self) -> list[int]:
        """Processes of the run, watchers too, that still live a while after."""
        deadline = time.monotonic() + 20
        while found := running(Path(self.config.log.run_dir)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return found


def hanging_run(directory: Path, timeout: float | None = TIMEOUT) -> RunConfig:
    """A small run of two expert-parallel ranks that saves every other step."""
    config = text_run("ep2", directory, "run", train={"steps": 30, "eval_interval": 0, "hang_timeout": timeout})
    return replace(config, checkpoint=replace(config.checkpoint, save_interval=2))


def _code(process: Any) -> int | None:
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def _on_rank(output: Path, fault: str, victim: int, config: RunConfig) -> int:
    with open(output, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return rank.main(fault, str(victim), json.dumps(config.to_dict()))


@contextmanager
def hanging(directory: Path, fault: str, victim: int, timeout: float | None = TIMEOUT) -> Iterator[Ranks]:
    """Two forked ranks of a run, of which one meets a fault; they have a world already. None is left afterwards."""
    config, output = hanging_run(directory, timeout), directory / "output.txt"
    output.touch()
    with start_ranks(2, _on_rank, output, fault, victim, config) as ranks:
        yield Ranks(ranks, config, output)


@contextmanager
def hanging_programs(directory: Path, fault: str, victim: int, ranks: int = 2) -> Iterator[Ranks]:
    """The same with programs, which meet by a store of rank 0. Only the first `ranks` of them are started."""
    config = hanging_run(directory)
    output = directory / "output.txt"
    environment = {
        **os.environ,
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"},
    }
    processes = []
    try:
        with open(output, "ab") as file:
            for number in range(ranks):
                processes.append(
                    subprocess.Popen(
                        [
                            sys.executable,
                            "-m",
                            "tests.faults.hanging",
                            fault,
                            str(victim),
                            json.dumps(config.to_dict()),
                        ],
                        env={**environment, "RANK": str(number), "LOCAL_RANK": str(number)},
                        stdout=file,
                        stderr=file,
                        start_new_session=True,
                    )
                )
        yield Ranks(processes, config, output)
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
            process.wait()
