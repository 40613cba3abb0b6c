"""What the watcher of one rank tells those of the others: a small JSON file a rank in the run directory.

The files are the only way between ranks: a hang may be that of the network. A file is written in place, so that a
network file system shows it to another node that opens it; a reader that meets half a file reads it again later.
This module knows neither torch nor megatron.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from altup_moe.parallel.watchdog.ring import Group, Record, State

RUNNING, EXPIRED, DIED, REPORTED = "running", "expired", "died", "reported"
"""States of a rank: nothing is wrong; no progress for train.hang_timeout; its process has ended; its watcher has
written the report."""


@dataclass(frozen=True)
class Status:
    """A rank as its watcher sees it.

    ``start``: names the start that the rank belongs to. ``beat``: counts what its watcher has written. ``at``: when,
    seconds since the epoch. ``since``: seconds without progress. ``process``: state as in /proc (R, S, D, T, ...), ""
    where it is not known. ``answers``: whether its Python answers; None was not asked. ``records``: only once it has
    expired. ``told``: the stacks are there, or cannot be had. ``report``: file of the report, once there is one;
    ``summary``: its first lines.
    """

    rank: int
    world_size: int
    start: str
    pid: int
    host: str
    beat: int = 0
    at: float = 0.0
    state: str = RUNNING
    phase: str = ""
    step: int = 0
    since: float = 0.0
    process: str = ""
    answers: bool | None = None
    records: tuple[Record, ...] = field(default=(), repr=False)
    stacks: str = field(default="", repr=False)
    told: bool = False
    report: str = ""
    summary: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the process is stopped by a signal or a debugger."""
        return self.process in ("T", "t")


def status_file(directory: Path, rank: int) -> Path:
    """The file of a rank in the watchdog's directory."""
    return directory / f"rank_{rank:05d}.json"


def write_status(directory: Path, status: Status) -> None:
    """Write it; a directory that cannot be written is passed over, since nobody could read of it there."""
    groups: dict[str, list[Any]] = {}
    records = []
    for r in status.records:
        groups[r.group.key] = [r.group.name, list(r.group.ranks)]
        records.append([*_plain(r), r.group.key, list(r.shape), int(r.state)])
    data = json.dumps({**vars(status), "records": records, "groups": groups}).encode()
    with suppress(OSError):
        directory.mkdir(exist_ok=True)
        descriptor = os.open(status_file(directory, status.rank), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.pwrite(descriptor, data, 0)
            os.ftruncate(descriptor, len(data))
        finally:
            os.close(descriptor)


def read_status(directory: Path, rank: int) -> Status | None:
    """A rank's status; None if it is not there, or cannot be read now."""
    try:
        values = json.loads(status_file(directory, rank).read_bytes())
        groups = {key: Group(name, tuple(ranks), key) for key, (name, ranks) in values.pop("groups").items()}
        records = [
            Record(**dict(zip(_KEYS, plain, strict=True)), group=groups[key], shape=tuple(shape), state=State(state))
            for *plain, key, shape, state in values.pop("records")
        ]
        return replace(Status(**values), records=tuple(records))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remove_statuses(directory: Path, ranks: list[int] | None = None) -> None:
    """Remove the files of these ranks (None: of all), and the directory if nothing else is in it."""
    with suppress(OSError):
        found = list(directory.iterdir()) if ranks is None else [status_file(directory, rank) for rank in ranks]
        for file in found:
            if re.fullmatch(r"rank_\d{5,}\.json", file.name):
                file.unlink(missing_ok=True)
        directory.rmdir()


def start_name(environment: Mapping[str, str]) -> str:
    """What tells this start of the run from an earlier one, as far as launchers say it; the same on all ranks."""
    names = ["TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"]
    names += ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]
    if environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE"):
        # On several nodes each agent counts only the restarts that its own ranks made necessary.
        names.append("TORCHELASTIC_RESTART_COUNT")
    return "/".join(environment.get(name, "") for name in names)


_KEYS = ("number", "sequence", "operation", "peer", "dtype", "place", "begun", "ended")


def _plain(record: Record) -> list[Any]:
    return [getattr(record, key) for key in _KEYS]
