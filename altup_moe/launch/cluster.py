"""Execute a netlab plan: create the network, run the nodes, and always remove everything at the end."""

from __future__ import annotations

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
from types import FrameType
from typing import IO

from altup_moe.config.exit_codes import EXIT_TIMEOUT
from altup_moe.launch.netplan import NAMESPACE, WORK_DIR, NetlabError, NetlabPlan, Node

NODE_POLL_SECONDS = 0.05
FAILURE_GRACE = 5.0
"""Seconds that the other nodes have to end after one failed; the collective that they wait for cannot finish."""

# Addresses have no names in the namespaces, and torch would warn about each connection.
_DEFAULTS = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
_serial = count()


class Signals:
    """Inside this context SIGTERM, SIGINT and SIGHUP are only noted, so that none interrupts the cleanup.

    A signal that was ignored before (nohup, background jobs) stays ignored. Outside the main thread no signal is noted.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)


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
    with Signals() as signals:
        started: list[subprocess.Popen[str]] = []
        copies: list[threading.Thread] = []
        try:
            for argv in plan.create:
                execute(argv)
                if signals.received:
                    return 128 + signals.received[0]
            for rank, node in enumerate(plan.nodes):
                process = _start(rank, node, log_dir)
                started.append(process)
                if process.stdout:
                    copies.append(_copy(rank, process.stdout))
            return _wait(started, signals, grace, timeout)
        finally:
            for process in started:
                process.kill()  # before its ranks: a launcher that sees them end would start to report
            remove(plan.namespaces)
            for process in started:
                process.wait()
            for copy in copies:
                copy.join(5)


def _start(rank: int, node: Node, log_dir: Path | None) -> subprocess.Popen[str]:
    """Start a node. Only node 0 writes to stdout; the others write to their log files or to a pipe."""
    log = log_dir / f"node{rank}.log" if log_dir else None
    with log.open("w") if rank and log else nullcontext() as file:
        return subprocess.Popen(
            node.argv,
            env={**_DEFAULTS, **os.environ, **node.env},
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


def _wait(nodes: list[subprocess.Popen[str]], signals: Signals, grace: float, timeout: float | None) -> int:
    """Wait for all nodes. Forward signals, stop the others after a failure, and give up after the grace period."""
    give_up = None if timeout is None else time.monotonic() + timeout
    deadline: float | None = None  # set when the nodes have been told to stop
    failed: int | None = None
    timed_out = False
    while True:
        codes = [node.poll() for node in nodes]
        if failed is None:
            failed = next((code for code in codes if code), None)
        if None not in codes:
            break
        now = time.monotonic()
        if deadline is None:
            timed_out = give_up is not None and now >= give_up
            if signals.received or failed is not None or timed_out:
                deadline = now + (FAILURE_GRACE if failed is not None else grace)
                for node in nodes:
                    if node.poll() is None:
                        node.send_signal(signals.received[0] if signals.received else signal.SIGTERM)
        elif now >= deadline or len(signals.received) > 1:
            failed = failed or 128 + signal.SIGKILL
            break
        time.sleep(NODE_POLL_SECONDS)
    if timed_out:
        return EXIT_TIMEOUT
    return 128 - failed if failed is not None and failed < 0 else failed or 0
