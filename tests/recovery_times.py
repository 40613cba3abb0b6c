"""Print where the seconds go between the death of a rank and the first step after it: `python -m tests.recovery_times`.

    python -m tests.recovery_times [KILLS [train's flags ...]]

A tiny run with experts trains on two ranks under `altup-moe launch torchrun --max-restarts`. Rank 1 is killed with -9
KILLS (5) times, each time 25 s after the start before. Each line is a median over the kills, of rank 0.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from altup_moe.bench.faults.processes import alive, ranks_of
from altup_moe.config.start_clock import VARIABLE

ROOT = Path(__file__).parents[1]
BETWEEN = 25.0
TINY = {
    "model": "hidden_size 48 ffn_hidden_size 64 seq_length 64",
    "moe": "ffn_hidden_size 32",
    "train": "steps 100000 eval_samples 4 eval_interval 0",
    "checkpoint": "save_interval 20",
    "log": "tensorboard false interval 100",
}
PHASES = (
    *("process, interpreter", "imports", "checkpoint found, data opened", "process groups"),
    *("model built, checkpoint loaded", "first step"),
)


def _flags() -> list[str]:
    words = [(section, *pair.split()) for section, text in TINY.items() for pair in _pairs(text)]
    return [word for section, key, value in words for word in (f"--{section}.{key}", value)]


def _pairs(text: str) -> list[str]:
    words = text.split()
    return [f"{key} {value}" for key, value in zip(words[::2], words[1::2], strict=True)]


def _marks(clock: Path, process: int) -> dict[str, float]:
    """When a process reached what."""
    lines = clock.read_text(encoding="utf-8").splitlines() if clock.exists() else []
    split = [line.split(maxsplit=3) for line in lines]
    return {done: float(at) for _, pid, at, done in split if int(pid) == process}


def _until(what: str, condition: object, run: subprocess.Popen[bytes]) -> float:
    """Wait; returns the time, seconds since the epoch."""
    deadline = time.monotonic() + 300
    while not condition():  # type: ignore[operator]
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < deadline, what
        time.sleep(0.005)
    return time.time()


def _first_step(clock: Path, run_dir: Path, others: set[int]) -> int | None:
    """Process of rank 0 once it has taken a step, if it is none of the others."""
    rank = ranks_of(run_dir).get(0)
    return rank if rank is not None and rank not in others and "first step" in _marks(clock, rank) else None


def _kill(run: subprocess.Popen[bytes], run_dir: Path, clock: Path) -> dict[str, float]:
    ranks = ranks_of(run_dir)
    killed = time.time()
    os.kill(ranks[1], signal.SIGKILL)
    gone = _until("the others ended", lambda: not any(alive(pid) for pid in ranks.values()), run)
    _until("a first step", lambda: _first_step(clock, run_dir, set(ranks.values())), run)
    rank = ranks_of(run_dir)[0]
    marks = _marks(clock, rank)
    found = {"others ended": gone - killed}
    for before, phase in zip(("", *PHASES), PHASES, strict=False):
        found[phase] = marks[phase] - (marks[before] if before else gone)
    return found | {"death to the first step": marks["first step"] - killed}


def main(words: Sequence[str]) -> None:
    """Kill, and print the table."""
    kills, flags = int(words[0]) if words else 5, list(words[1:])
    with tempfile.TemporaryDirectory(prefix="recovery-") as directory:
        run_dir, clock = Path(directory) / "run", Path(directory) / "clock"
        launch = ["launch", "torchrun", "--ranks-per-node", "2", "--max-restarts", str(kills + 1), "--"]
        train = [sys.executable, "-P", "-m", "altup_moe", "train", "quickstart", *_flags(), *flags]
        command = [sys.executable, "-P", "-m", "altup_moe", *launch, *train, "--log.run_dir", str(run_dir)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(clock)}
        with open(Path(directory) / "log", "wb") as log:
            run = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _until("a first step", lambda: _first_step(clock, run_dir, set()), run)
            found = []
            for _ in range(kills):
                time.sleep(BETWEEN)
                found.append(_kill(run, run_dir, clock))
        finally:
            run.send_signal(signal.SIGTERM)
            run.wait(120)
    print(f"median of {kills} kills, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for phase in found[0]:
        seconds = [each[phase] for each in found]
        print(f"{statistics.median(seconds):8.2f} s  ({min(seconds):.2f} .. {max(seconds):.2f})  {phase}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
