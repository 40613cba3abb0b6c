"""One torchrun node. It takes torchrun's arguments and returns the ranks' own exit code.

torchrun itself exits with 1 whatever its ranks returned, also after a signal. But the exit code of a trainer has a
meaning (altup-moe: 75 is "stopped and saved"). So this module forwards a signal to the ranks and waits until they have
ended, before torchrun sees it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from altup_moe.config.exit_codes import EXIT_FAILED
from altup_moe.config.imports import without_collections
from altup_moe.launch.rank_watch import POLL_SECONDS, is_stopped, send
from altup_moe.launch.restarts import Failures
from altup_moe.launch.standby import Standby, standby
from altup_moe.parallel.death_record import DIRECTORY, OWN_LAUNCHER
from altup_moe.parallel.parent_death import LAUNCHER_ID, seconds_to_save

# Signals that end a node -> the signal that the ranks get. SLURM warns with USR1, which becomes a request to stop.
FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGUSR1: signal.SIGTERM,
}
HEAR_SECONDS = 0.5
"""How late a signal is handled, at most, while a process is waited for."""
TWICE_SECONDS = 2.0
"""A signal that comes again so soon is one request told twice, as for a rank (`train.stop_signal`)."""
PARENT = os.getppid()
NETLAB = "altup-moe launch netlab"
"""Prefix of messages of netlab's nodes."""
_template = Standby()
"""The process that forks the ranks of a restart. It is no rank: no signal is forwarded to it, nobody waits for it."""
_received: list[int] = []
_stopped: list[float] = []
"""When signals were received, seconds since the epoch."""
_forwarded: list[float] = []
"""When signals were forwarded to ranks, by `time.monotonic`."""


def child_processes(parent: int) -> list[int]:
    """Running child processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, started_by = entry.read_text().rpartition(")")[2].split()[:2]
            if int(started_by) == parent and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


def wait_and_hear(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process as `Popen.wait` does; its exit code.

    Without a bound, a signal that comes just before the wait begins is handled only when the wait ends: Python looks
    for signals between two instructions, and the kernel does not interrupt a call that has not begun.
    """
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(HEAR_SECONDS)


def told_already(number: int, received: Sequence[int]) -> bool:
    """Whether a signal after those `received` repeats a warning of SLURM, which warns in more than one way (USR1).

    Any other second signal is forwarded: it ends a trainer that is still saving, as its sender wants.
    """
    return bool(received) and signal.SIGUSR1 in (number, *received)


def forward_signal(number: int, frame: FrameType | None) -> None:
    """Forward a signal to the ranks and wait until they have ended, but leave their exit codes for torchrun.

    torchrun does not run meanwhile. It would stop the other ranks of this node as soon as the first one has ended.
    """
    told = told_already(number, _received)
    _received.append(number)
    _stopped.append(time.time())
    if told:
        return
    ranks = _ranks()
    if not ranks and _forwarded and time.monotonic() - _forwarded[0] < TWICE_SECONDS:
        return  # the ranks have ended as they were told; torchrun reports their codes
    if not ranks:
        if number == signal.SIGINT:
            print("altup-moe: interrupted (Ctrl-C)", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)
    _forwarded.append(time.monotonic())
    for rank in ranks:
        # torchrun makes each rank the leader of a group. A second request is not kept from a rank that is stopped.
        send(rank, signal.SIGKILL if len(_forwarded) > 1 and is_stopped(rank) else FORWARDED[signal.Signals(number)])
    while any(_runs(rank) for rank in ranks):
        time.sleep(POLL_SECONDS)


def _ranks() -> list[int]:
    """The ranks of this node that run."""
    return [child for child in child_processes(os.getpid()) if child != _template.pid]


def end_with_netlab(netlab: int) -> None:
    """End this node when netlab has been killed (-9), once its ranks have saved and ended; kill those that are late.

    The kernel's SIGTERM stops the ranks (`forward_signal`), but it cannot end the node. It may come too early: netlab's
    threads end one by one, and netlab is this process's parent until the last one has ended. And the main thread may be
    in a call of torchrun's store, which hears no signal and waits for nodes that have ended (300 s). So this is a
    thread, which asks again and again.

    Args:
        netlab: its process, the parent of this one.
    """

    def work() -> None:
        while os.getppid() == netlab:
            time.sleep(HEAR_SECONDS)
        give_up = time.monotonic() + seconds_to_save()
        while (ranks := _ranks()) and time.monotonic() < give_up:
            time.sleep(POLL_SECONDS)
        for rank in ranks:
            send(rank, signal.SIGKILL)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=work, name="end-with-netlab", daemon=True).start()


def _runs(child: int) -> bool:
    """Whether a child process has not ended; its exit code is left to whoever collects it."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None
    return False


def hear_signals() -> None:
    """Forward signals from now on. Without ranks a signal ends this process. Ignored signals (nohup) stay ignored."""
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward_signal)


def arguments_for_ranks(argv: Sequence[str]) -> list[str]:
    """torchrun's arguments, with a command that is told to stop when this process ends (`parallel.parent_death`).

    Each `$` of the command is doubled, so that torchrun does not substitute `$local_rank`.
    """
    cut = argv.index("--no-python") + 1 if "--no-python" in argv else len(argv)
    own, command = argv[:cut], argv[cut:]
    if not command:
        return [*own]
    script = Path(__file__).parents[1] / "parallel" / "parent_death.py"
    stops = [sys.executable, "-I", "-S", str(script), "--stop", str(os.getpid())]
    return [*own, *(word.replace("$", "$$") for word in (*stops, *command))]


def main(argv: Sequence[str], name: str = NETLAB) -> int:
    """Run torchrun and return 0 or the exit code of the first rank that failed (128 + n for signal n).

    Args:
        argv: torchrun's arguments.
        name: prefix of messages.
    """
    hear_signals()
    os.environ[OWN_LAUNCHER] = "torchrun"
    by_netlab = DIRECTORY in os.environ and name == NETLAB
    if by_netlab:
        end_with_netlab(PARENT)
    with nullcontext(os.environ[DIRECTORY]) if by_netlab else TemporaryDirectory(prefix="altup-moe-") as records:
        if not by_netlab:
            os.environ.update({DIRECTORY: records, LAUNCHER_ID: str(os.getpid())})
        failures = Failures(name, Path(records), lambda: min(_stopped, default=math.inf), speaks=not by_netlab)
        failures.install()
        return _run(argv, failures, name)


def _run(argv: Sequence[str], failures: Failures, name: str) -> int:
    with without_collections():
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous import RendezvousError
        from torch.distributed.run import parse_args, run

    _quieten_torchrun()
    # With one store for all restarts, gloo would read the addresses of ranks that have died (torch 2.13).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # torchrun must handle at least one signal; this one is not in FORWARDED.
    own = ["--signals-to-handle", "SIGUSR2", "--monitor-interval", "0.05"]
    try:
        arguments = parse_args([*own, *arguments_for_ranks(argv)])
        global _template
        with standby(restarts=int(arguments.max_restarts) > 0) as _template:
            run(arguments)
    except ChildFailedError as error:
        if failures.first is not None:
            return failures.first.code
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except RendezvousError as error:
        print(
            f"{name}: the nodes did not meet: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr
        )
        return failures.first.code if failures.first is not None else EXIT_FAILED
    except SystemExit as stopped:  # by a signal, without ranks
        return int(stopped.code or 0)
    return 0


def _quieten_torchrun() -> None:
    # What torchrun says of a failed rank is said by `Failures`.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    # It warns at length where the node that hosts the rendezvous has ended.
    logging.getLogger("torch.distributed.elastic.rendezvous.dynamic_rendezvous").setLevel(logging.ERROR)
    # With a traceback too, at the end of a good run: a node that comes last to the barrier finds its host gone.
    logging.getLogger("torch.distributed.elastic.agent.server.api").addFilter(_is_no_late_barrier)


def _is_no_late_barrier(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Error waiting on exit barrier")


def leave(code: int) -> None:
    """End this process at once, because unloading torch takes seconds on a busy machine."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
