"""Processes of a study: how a row's ranks are started, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import altup_moe
from altup_moe.config import UserError
from altup_moe.parallel import parent_death
from altup_moe.study.folder import Place
from altup_moe.study.spec import RowSpec

ROOT = Path(str(altup_moe.__file__)).parents[1]
GRACE = 60.0
"""Seconds that a stopped training has to finish its step and save."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Child:
    """A process of a study, tied to it."""

    process: subprocess.Popen[bytes]

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.poll()


def check_launchers(rows: Iterable[RowSpec]) -> None:
    """Raise UserError where the launchers that rows need are not there."""
    for row in rows:
        if row.ranks > 1 and not (ROOT / "launch" / "torchrun.sh").is_file():
            raise UserError(f"row {row.name}: {row.ranks} ranks need launch/ beside altup_moe/; start from a checkout")
        if row.launcher == "netlab" and os.geteuid() != 0:
            raise UserError(f"row {row.name}: launcher netlab needs root")


def command(words: Sequence[str], row: RowSpec) -> list[str]:
    """The command line that runs `altup_moe.study.worker_main` with these words on every rank of a row."""
    own = [sys.executable, "-m", "altup_moe.study.worker_main", *words]
    if row.launcher == "netlab":
        rate = ["--rate", row.rate] if row.rate else []
        return [sys.executable, str(ROOT / "launch" / "netlab"), "--nodes", str(row.ranks), *rate, "--", *own]
    if row.ranks > 1:
        return ["/usr/bin/env", "bash", str(ROOT / "launch" / "torchrun.sh"), "--ranks-per-node", str(row.ranks), "--",
                *own]  # fmt: skip
    return own


def start(words: Sequence[str], row: RowSpec, log: Path) -> Child:
    """Start it in a session of its own (the terminal's Ctrl-C reaches it once, through the study)."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": str(row.threads),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, str(parent_death.__file__), str(os.getpid()), *command(words, row)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Child(process)


def stop(children: Sequence[Child], hurry: Callable[[], bool] = lambda: False) -> None:
    """Have trainings save and end; kill what has not ended after the grace, or once there is hurry.

    What a launcher has started ends with it: its ranks are tied to it.
    """
    for child in children:
        if child.code is None:
            child.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while any(child.code is None for child in children) and time.monotonic() < deadline and not hurry():
        time.sleep(POLL_SECONDS)
    for child in children:
        if child.code is None:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def reason(code: int, place: Place, log: Path) -> str:
    """Why a child failed, in one line: what it wrote, the signal, or the last line that it printed."""
    with suppress(OSError):
        return place.failure.read_text(encoding="utf-8").strip()
    killed = -code if code < 0 else code - 128 if code > 128 else 0
    if killed:
        return f"killed by signal {killed}"
    with suppress(OSError):
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), f"exit code {code}")[:500]
    return f"exit code {code}"
