"""Faults that are done to a run: kill, stop, slow down, fill its disk; and back."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from altup_moe.bench.faults.processes import of_run, ranks_of, send
from altup_moe.bench.faults.schedule import Planned, victim
from altup_moe.bench.options import FaultKind

FATAL: tuple[FaultKind, ...] = ("kill-rank", "kill-launcher", "kill-node", "stop-signal", "stop-rank", "link-down")
"""Faults after which the ranks have to end; with the others training goes on."""
SLOW_SHARE = 0.2
"""Share of one core that a slowed rank keeps."""
SLOW_LINK = "2mbit"
FILLER = "filler"
"""File that fills the disk of a run."""


@dataclass(frozen=True)
class Target:
    """What is hit: the launcher's process, the run's directory, and the file system that a full disk fills."""

    launcher: int
    run_dir: Path
    disk: Path


@dataclass(frozen=True)
class Injected:
    """A fault that was done.

    Attributes:
        victim: whom it met, in words. undo: takes it back; None where there is nothing to take back.
    """

    victim: str
    undo: Callable[[], None] | None = None


def inject(planned: Planned, target: Target) -> Injected | None:
    """Do a fault; None where nobody is there whom it could meet now (between two starts)."""
    ranks = ranks_of(target.run_dir)
    if not ranks:
        return None
    rank = victim(planned.draw, list(ranks))
    match planned.kind:
        case "kill-rank":
            send([ranks[rank]], signal.SIGKILL)
            return Injected(f"rank {rank}")
        case "kill-launcher":
            send([target.launcher], signal.SIGKILL)
            return Injected("launcher")
        case "stop-signal":
            send([target.launcher], signal.SIGTERM)
            return Injected("launcher")
        case "stop-rank":
            pid = ranks[rank]
            send([pid], signal.SIGSTOP)
            return Injected(
                f"rank {rank}", lambda: send([pid] if pid in of_run(target.run_dir) else [], signal.SIGCONT)
            )
        case "slow-rank":
            return Injected(f"rank {rank}", _slow(ranks[rank]))
        case "full-disk":
            return Injected(str(target.disk), _fill(target.disk / FILLER))
    return _of_node(planned, target)


def _of_node(planned: Planned, target: Target) -> Injected | None:
    nodes = _namespaces(target.launcher)
    if not nodes:
        return None
    name = nodes[int(planned.draw * len(nodes))]
    node = f"node {name.rpartition('-')[2]}"
    match planned.kind:
        case "kill-node":
            send([int(pid) for pid in _said("ip", "netns", "pids", name).split()], signal.SIGKILL)
            return Injected(node)
        case "link-down":
            _said("ip", "-n", name, "link", "set", "veth0", "down")
            return Injected(node, lambda: _try("ip", "-n", name, "link", "set", "veth0", "up"))
        case "slow-link":
            rate = ("tbf", "rate", SLOW_LINK, "burst", "16kb", "latency", "100ms")
            _said("tc", "-n", name, "qdisc", "replace", "dev", "veth0", "root", *rate)
            return Injected(node, lambda: _try("tc", "-n", name, "qdisc", "del", "dev", "veth0", "root"))
    raise AssertionError(planned.kind)


def _namespaces(launcher: int) -> list[str]:
    """Namespaces of the nodes of a netlab, in order."""
    names = [line.split()[0] for line in _said("ip", "netns", "list").splitlines() if line.strip()]
    ours = [name for name in names if name.startswith(f"altup-{launcher}-")]
    return sorted(name for name in ours if name.rpartition("-")[2].isdigit())


def _said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    return done.stdout if done.returncode == 0 else ""


def _try(*argv: str) -> None:
    """Undo something in a namespace, which may have gone."""
    _said(*argv)


def _slow(pid: int) -> Callable[[], None]:
    """Leave a process `SLOW_SHARE` of a core, by a cgroup."""
    old = Path("/sys/fs/cgroup/cpu")
    root = old if (old / "cpu.cfs_quota_us").is_file() else Path("/sys/fs/cgroup")
    group = root / f"altup-moe-bench-{os.getpid()}-{pid}"
    group.mkdir()
    period, quota = 50_000, int(50_000 * SLOW_SHARE)
    if root == old:
        (group / "cpu.cfs_period_us").write_text(f"{period}")
        (group / "cpu.cfs_quota_us").write_text(f"{quota}")
    else:
        with suppress(OSError):
            (root / "cgroup.subtree_control").write_text("+cpu")
        (group / "cpu.max").write_text(f"{quota} {period}")
    (group / "cgroup.procs").write_text(f"{pid}")

    def undo() -> None:
        for member in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (root / "cgroup.procs").write_text(member)
        with suppress(OSError):
            group.rmdir()

    return undo


def _fill(file: Path) -> Callable[[], None]:
    """Fill the file system of a file up to the last page."""
    with open(file, "wb", buffering=0) as out:
        size = 1 << 20
        block = bytes(size)
        while size >= 1:
            try:
                out.write(block[:size])
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
    return lambda: file.unlink(missing_ok=True)
