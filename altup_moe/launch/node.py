"""One torchrun node, run as a script. It takes torchrun's arguments and returns the ranks' own exit code.

torchrun itself exits with 1 whatever its ranks returned, also after a signal. But the exit code of a trainer has a
meaning (altup-moe: 75 is "stopped and saved"). So this script forwards a signal to the ranks and waits until they have
ended, before torchrun sees it.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

# Signals that end a node -> the signal that the ranks get. SLURM warns with USR1, which becomes a request to stop.
FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGUSR1: signal.SIGTERM,
}
FINAL_CODES = (2, 75)
"""Exit codes of a rank after which a restart would not help: a mistake of the user; stopped and saved."""
OWN_LAUNCHER = "ALTUP_MOE_LAUNCHER"
"""Variable of ranks that were started here; bare torchrun hides their exit codes (`bare_torchrun`)."""
ENDED_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a rank that was told to end before it had anything to save: nothing more is to be said."""
TWICE_SECONDS = 2.0
"""A signal that comes again so soon is one request told twice, as for a rank (`train.stop_signal`)."""
PARENT = os.getppid()
_received: list[int] = []
_forwarded: list[float] = []
"""When signals were forwarded to ranks, by `time.monotonic`."""
_ENDED = re.compile(r"failed \(exitcode: (?P<code>-?\d+)\)")


def child_processes(parent: int) -> list[int]:
    """Running child processes of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, started_by = entry.read_text().rpartition(")")[2].split()[:2]
            if int(started_by) == parent and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


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
    if told:
        return
    ranks = child_processes(os.getpid())
    if not ranks and _forwarded and time.monotonic() - _forwarded[0] < TWICE_SECONDS:
        return  # the ranks have ended as they were told; torchrun reports their codes
    if not ranks:
        if number == signal.SIGINT:
            print("altup-moe: interrupted (Ctrl-C)", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)
    _forwarded.append(time.monotonic())
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank, FORWARDED[signal.Signals(number)])  # torchrun makes each rank the leader of a group
    for rank in ranks:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, rank, os.WEXITED | os.WNOWAIT)
    if os.getppid() != PARENT:
        # netlab was killed, so nothing would stop this node while torchrun waits for the others (300 s).
        os._exit(128 + number)


def hear_signals() -> None:
    """Forward signals from now on. Without ranks a signal ends this process. Ignored signals (nohup) stay ignored."""
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward_signal)


def restart_only_failures() -> None:
    """Keep torchrun from restarting ranks that were stopped by a signal, or whose exit code is in `FINAL_CODES`.

    torchrun has no such setting, so this sets the number of remaining restarts of its agent to 0 (torch 2.13).
    """
    from altup_moe.parallel.patches import RESTARTS, original, replace

    monitor = original(RESTARTS)

    def watched(self: Any, group: Any) -> Any:
        result = monitor(self, group)
        if result.is_failed():
            codes = [failure.exitcode for failure in result.failures.values()]
            if _received or any(code in FINAL_CODES for code in codes):
                self._remaining_restarts = 0
        return result

    replace(RESTARTS, watched)


def expected_end(line: str) -> bool:
    """Whether a line of torchrun's log tells of ranks that ended as they were told to, or by a user's mistake."""
    told = _ENDED.match(line)
    code = int(told["code"]) if told else None
    return "closing signal" in line or (code is not None and (bool(_received) or code in FINAL_CODES))


def literal(argv: Sequence[str]) -> list[str]:
    """torchrun's arguments with each `$` of the command doubled, so that torchrun does not substitute `$local_rank`."""
    cut = argv.index("--no-python") + 2 if "--no-python" in argv else len(argv)
    return [*argv[:cut], *(word.replace("$", "$$") for word in argv[cut:])]


def main(argv: Sequence[str], name: str = "altup-moe launch netlab") -> int:
    """Run torchrun and return 0 or the exit code of the first rank that failed (128 + n for signal n).

    Args:
        argv: torchrun's arguments.
        name: prefix of messages.
    """
    hear_signals()
    os.environ[OWN_LAUNCHER] = "torchrun"
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    restart_only_failures()
    log = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    log.addFilter(lambda record: not expected_end(record.getMessage()))
    # With one store for all restarts, gloo would read the addresses of ranks that have died (torch 2.13).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # torchrun must handle at least one signal; this one is not in FORWARDED.
    own = ["--signals-to-handle", "SIGUSR2", "--monitor-interval", "0.05"]
    try:
        run(parse_args([*own, *literal(argv)]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        if _received and code in ENDED_BY_SIGNAL:
            return code
        print(f"{name}: rank {rank} ended with exit code {code}", file=sys.stderr)
        return code
    except SystemExit as stopped:  # by a signal, without ranks
        return int(stopped.code or 0)
    return 0


def leave(code: int) -> None:
    """End this process at once, because unloading torch takes seconds on a busy machine."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # altup_moe, also where it is not installed
    leave(main(sys.argv[1:]))  # netlab reports the node that ends first, so no node may be late
