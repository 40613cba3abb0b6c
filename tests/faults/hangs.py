"""Starts ranks of `tests.faults.hanging`, and waits for what becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from altup_moe.config import RunConfig
from altup_moe.doctor.network import free_port
from tests.distributed.runs import text_run
from tests.processes import running

TIMEOUT = 3.0
"""train.hang_timeout of these runs."""
PATIENCE = 150.0
"""Seconds after which a test fails; not a figure."""


@dataclass(frozen=True)
class Ranks:
    """Two ranks that run: their processes, the configuration, and the file that both write to."""

    processes: list[subprocess.Popen]
    config: RunConfig
    output: Path

    def codes(self) -> list[int]:
        """Exit codes of all, once all have ended."""
        deadline = time.monotonic() + PATIENCE
        while None in (codes := [process.poll() for process in self.processes]):
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


@contextmanager
def hanging(
    directory: Path, fault: str, victim: int, *, ranks: int = 2, layout: str = "ep2", timeout: float | None = TIMEOUT
) -> Iterator[Ranks]:
    """Two ranks of a run (or only the first `ranks` of them), of which one meets a fault; none is left afterwards."""
    config = text_run(layout, directory, "run", train={"steps": 30, "eval_interval": 0, "hang_timeout": timeout})
    config = replace(config, checkpoint=replace(config.checkpoint, save_interval=2))
    output = directory / "output.txt"
    environment = {
        **os.environ,
        **{"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"},
    }
    processes = []
    try:
        with open(output, "ab") as file:
            for rank in range(ranks):
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
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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
