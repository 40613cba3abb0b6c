"""Execute a netlab plan: create the network, run the nodes, and always remove everything at the end."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import IO

from altup_moe.config.exit_codes import EXIT_TIMEOUT
from altup_moe.launch.deaths import how_it_ended, in_order, lost_its_peer, report
from altup_moe.launch.netplan import NAMESPACE, WORK_DIR, NetlabError, NetlabPlan, Node
from altup_moe.launch.node import FORWARDED, NETLAB, TWICE_SECONDS, told_already
from altup_moe.launch.rank_watch import RankWatch
from altup_moe.launch.restarts import ENDED_BY_SIGNAL, FINAL_CODES
from altup_moe.parallel import death_record, parent_death
from altup_moe.parallel.death_record import Death

NODE_POLL_SECONDS = 0.05
FAILURE_GRACE = 5.0
"""Seconds that the other nodes have to end after one failed; the collective that they wait for cannot finish."""

# Addresses have no names in the namespaces, and torch would warn about each connection.
_DEFAULTS = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_serial = count()


class Signals:
    """Inside this context SIGTERM, SIGINT, SIGHUP and SIGUSR1 are only noted, so that none interrupts the cleanup.

    What only repeats the first one is not noted: SLURM's warning (`node.told_already`), or one that comes so soon that
    a rank takes both for one request.
    A signal that was ignored before (nohup, background jobs) stays ignored. Outside the main thread no signal is noted.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._noted_at = -math.inf
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in FORWARDED:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not told_already(number, self.received) and now - self._noted_at >= TWICE_SECONDS:
            self.received.append(number)
            self._noted_at = now


def execute(argv: Sequence[str]) -> str:
    """Run one command to its end in a session of its own, which Ctrl-C does not reach. Returns its output."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, start_new_session=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise NetlabError(f"{' '.join(argv)}: not done after 30 s") from None
    if done.returncode:
        raise NetlabError(f"{' '.join(argv)}: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def start_time(pid: int) -> int | None:
    """When a running process was started, in clock ticks after boot; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def new_prefix() -> str:
    """Prefix of the names of a new cluster. The start time distinguishes this process from a later one with its pid."""
    return f"altup-{os.getpid()}-{start_time(os.getpid())}-{next(_serial)}"


def existing() -> list[str]:
    """Names of the namespaces of all netlabs."""
    names = [line.split()[0] for line in execute(["ip", "netns", "list"]).splitlines() if line.strip()]
    return [name for name in names if NAMESPACE.fullmatch(name)]


def remove_dead() -> list[str]:
    """Remove namespaces and processes of netlabs that were killed. Returns the names of the namespaces."""
    found = ((name, NAMESPACE.fullmatch(name)) for name in existing())
    dead = [name for name, match in found if match and start_time(int(match["pid"])) != int(match["start"])]
    remove(dead)
    return dead


def remove(namespaces: Iterable[str]) -> None:
    """Kill the processes in the namespaces, and remove the namespaces with their links. Missing ones are ignored."""
    wanted = set(namespaces)
    for name in [name for name in existing() if name in wanted] if wanted else ():
        with suppress(NetlabError):  # another netlab may be removing the same leftovers
            deadline = time.monotonic() + 10
            while (pids := execute(["ip", "netns", "pids", name]).split()) and time.monotonic() < deadline:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)
            shutil.rmtree(f"{WORK_DIR}/{name}", ignore_errors=True)
            execute(["ip", "netns", "del", name])


def run_plan(plan: NetlabPlan, grace: float, timeout: float | None, log_dir: Path | None) -> int:
    """Create the cluster, run its nodes to the end and remove it.

    Returns:
        0, or the exit code of the node that failed first; 128 + n when signal n came before the nodes had started;
        124 after `timeout` seconds.
    """
    with Signals() as signals, TemporaryDirectory(prefix="altup-moe-") as records:
        started: list[subprocess.Popen[str]] = []
        copies: list[threading.Thread] = []
        try:
            for argv in plan.create:
                execute(argv)
                if signals.received:
                    return 128 + signals.received[0]
            for rank, node in enumerate(plan.nodes):
                process = _start(rank, node, log_dir, records)
                started.append(process)
                if process.stdout:
                    copies.append(_copy(rank, process.stdout))
            code, first = _wait(started, signals, grace, timeout)
            if code in (0, EXIT_TIMEOUT):
                return code
            return _first_failure(Path(records), bool(signals.received), first) or code
        finally:
            for process in started:
                process.kill()  # before its ranks: a launcher that sees them end would start to report
            remove(plan.namespaces)
            for process in started:
                process.wait()
            for copy in copies:
                copy.join(5)


def _first_failure(records: Path, stopped: bool, node: Death | None) -> int:
    """Say which rank of all nodes failed first, and how the others ended. Its exit code, 0 if none is known.

    Args:
        records: of the ranks. stopped: a signal has ended the nodes. node: the first one that ended (`rank` is its
            number); it is named if no rank failed by itself.
    """
    deaths = in_order(death_record.read_all(records))
    if node is not None and (not deaths or lost_its_peer(deaths[0])):
        code, lines = node.code, [f"{NETLAB}: node {node.rank} {how_it_ended(node)}", *report(NETLAB, deaths)[-1:]]
    elif deaths:
        code, lines = deaths[0].code, report(NETLAB, deaths, FINAL_CODES)
    else:
        return 0
    if not (stopped and code in (*FINAL_CODES, *ENDED_BY_SIGNAL)):
        print("\n".join(lines), file=sys.stderr, flush=True)
    return code


def _start(rank: int, node: Node, log_dir: Path | None, records: str) -> subprocess.Popen[str]:
    """Start a node. Only node 0 writes to stdout; the others write to their log files or to a pipe."""
    log = log_dir / f"node{rank}.log" if log_dir else None
    own = {death_record.DIRECTORY: records, parent_death.LAUNCHER_ID: str(os.getpid())}
    with log.open("w") if rank and log else nullcontext() as file:
        return subprocess.Popen(
            node.argv,
            env={**_DEFAULTS, **os.environ, **node.env, **own},
            stdin=subprocess.DEVNULL,
            stdout=(file or subprocess.PIPE) if rank else None,
            stderr=subprocess.STDOUT if rank else None,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the nodes once, through netlab
        )


def _copy(rank: int, lines: IO[str]) -> threading.Thread:
    """Copy a node's lines to stderr, with the node's number as prefix."""

    def work() -> None:
        for line in lines:  # read on even when nobody listens any more, or the node would block
            with suppress(OSError, ValueError):
                print(f"[node {rank}] {line.rstrip()}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _wait(
    nodes: list[subprocess.Popen[str]], signals: Signals, grace: float, timeout: float | None
) -> tuple[int, Death | None]:
    """Wait for all nodes. Forward signals, stop the others after a failure, and give up after the grace period.

    Returns:
        The exit code, and the node that failed first; None if none did by itself.
    """
    give_up = None if timeout is None else time.monotonic() + timeout
    deadline: float | None = None  # set when the nodes have been told to stop
    failed: Death | None = None
    timed_out = killed = False
    watch = RankWatch()
    watch.follow({number: node.pid for number, node in enumerate(nodes)})
    while True:
        for number, node in enumerate(nodes):
            # The watch sees an end first, with its time.
            if (number in watch.deaths or number in watch.gone) and node.poll() is not None:
                watch.note(number, node.returncode)
        if failed is None:
            failed = min(watch.failed, key=lambda death: death.time, default=None)
        running = [node for node in nodes if node.returncode is None]
        if not running:
            break
        now = time.monotonic()
        if deadline is None:
            timed_out = give_up is not None and now >= give_up
            if signals.received or failed is not None or timed_out:
                deadline = now + (FAILURE_GRACE if failed is not None else grace)
                for node in running:
                    with suppress(ProcessLookupError):
                        os.kill(node.pid, signals.received[0] if signals.received else signal.SIGTERM)
        elif now >= deadline or len(signals.received) > 1:
            killed = True
            break
        time.sleep(NODE_POLL_SECONDS)
    if timed_out:
        return EXIT_TIMEOUT, failed
    if failed is None:
        return (128 + signal.SIGKILL if killed else 0), None
    return failed.code, failed
