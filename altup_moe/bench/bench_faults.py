"""`altup-moe bench faults`: what faults cost a run, and that they cost it nothing but time.

A tiny model trains through the commands that a user types. A supervisor injects faults by a seeded schedule and starts
the same command again whenever it has ended. Then the same steps run once more, left alone: the numbers must be equal.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import get_args

from altup_moe.bench.faults.account import check_records, first_difference, outages, read_lines
from altup_moe.bench.faults.available import left_out, small_disk
from altup_moe.bench.faults.commands import batch_size, train_command
from altup_moe.bench.faults.report import Measured, Outcome, as_json, table
from altup_moe.bench.faults.schedule import schedule
from altup_moe.bench.faults.supervise import FaultsError, Seen, Supervisor
from altup_moe.bench.options import FaultKind, FaultsBench
from altup_moe.checkpoint.memory_directory import USUAL, VARIABLE
from altup_moe.config.exit_codes import EXIT_FAILED
from altup_moe.config.run_directory import metrics_file, removed_metrics_file


def bench_faults(options: FaultsBench) -> int:
    """Run, inject, count, and print a table or one JSON object. Returns 0 if nothing but time was lost."""
    unable = left_out(options.nodes)
    kinds = options.kinds or tuple(kind for kind in get_args(FaultKind) if kind not in unable)
    with _terminated(), _place(options.directory) as place:
        outcome = _measure(options, kinds, place, {} if options.kinds else unable)
    if options.json:
        print(json.dumps(as_json(options, outcome)))
    else:
        print("\n".join(table(options, outcome)))
    return 0 if outcome.kept else EXIT_FAILED


def _measure(options: FaultsBench, kinds: tuple[FaultKind, ...], place: Path, unable: dict[FaultKind, str]) -> Outcome:
    seconds, cache = 60 * options.minutes, place / "tokens"
    planned = schedule(kinds, seconds, options.every, options.seed)
    with small_disk(place / "disk", mount="full-disk" in kinds) as disk, _memory() as memory:
        run_dir = disk / "run"
        command = train_command(options, run_dir, cache)
        _tell(f"{len(planned)} fault(s) in {options.minutes:g} min of training; lines of the run: {place}/console.txt")
        supervisor = Supervisor(command, run_dir, disk, place / "console.txt", {VARIABLE: memory})
        seen, broken = supervisor.seen, None
        try:
            supervisor.run(planned, seconds)
        except FaultsError as error:
            # What was seen until then is told all the same.
            if seen.first is None:
                raise
            broken = str(error)
        kept_dir = shutil.copytree(run_dir, place / "run", ignore=shutil.ignore_patterns("checkpoints"))
    run = measured(seen, kept_dir, batch_size(options.ranks))
    if broken is not None or not options.quiet:
        return Outcome(run, None, None, unable, broken)
    _tell(f"a quiet run of {run.records.steps:,} steps")
    quiet_dir = place / "quiet"
    command = train_command(options, quiet_dir, cache, stop_after=run.records.steps)
    with _memory() as memory:
        seen = Supervisor(command, quiet_dir, place, place / "quiet.txt", {VARIABLE: memory}).run_to_end()
    quiet = measured(seen, quiet_dir, batch_size(options.ranks))
    differs = first_difference(*(read_lines(metrics_file(one).read_text()) for one in (kept_dir, quiet_dir)))
    return Outcome(run, quiet, differs, unable)


def measured(seen: Seen, run_dir: Path, batch: int) -> Measured:
    """A run from what was seen of it and from the metrics that it has left."""
    removed = removed_metrics_file(metrics_file(run_dir))
    kept = read_lines(metrics_file(run_dir).read_text(encoding="utf-8"))
    again = read_lines(removed.read_text(encoding="utf-8", errors="replace")) if removed.is_file() else []
    wall = seen.last - (seen.first if seen.first is not None else seen.last)
    return Measured(seen, outages(seen.events), check_records(kept, again, batch), wall)


@contextmanager
def _place(directory: str | None) -> Iterator[Path]:
    """The named directory, which is kept, or a temporary one."""
    if directory is not None:
        path = Path(directory).absolute()
        path.mkdir()
        yield path
        return
    with tempfile.TemporaryDirectory(dir=".", prefix=".bench-faults-") as name:
        yield Path(name).absolute()


@contextmanager
def _memory() -> Iterator[str]:
    """Where checkpoints in memory lie: a directory of its own, so that none stays."""
    with tempfile.TemporaryDirectory(dir=USUAL if Path(USUAL).is_dir() else None, prefix="altup-moe-bench-") as name:
        yield name


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends this command as an exception does: what was injected is taken back, and the run is ended."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
