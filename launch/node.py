"""One torchrun node, run as a script: torchrun's arguments, the ranks' own exit code.

torchrun exits with 1 whatever its ranks returned, also after a signal; a trainer that says "stopped, saved" with an
exit code (altup-moe: 75) needs that code to arrive. So a signal goes to the ranks, the launcher waits for them, and
then sees them end by themselves.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

# Signals that end a node, and what the ranks get: SLURM's warning (USR1) is one to stop.
FORWARDED = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGHUP: signal.SIGHUP,
    signal.SIGUSR1: signal.SIGTERM,
}
FINAL_CODES = (2, 75)
"""Exit codes of a rank after which a restart would change nothing: a mistake of the user's; stopped and saved."""
PARENT = os.getppid()
_received: list[int] = []


def children(parent: int) -> list[int]:
    """Processes started by one that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, started_by = entry.read_text().rpartition(")")[2].split()[:2]
            if int(started_by) == parent and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


def told_already(number: int, received: Sequence[int]) -> bool:
    """Whether a signal after `received` says nothing new: SLURM warns in more than one way (USR1 here).

    Any other second signal is passed on: it ends a trainer that is saving, as whoever repeats it wants.
    """
    return bool(received) and signal.SIGUSR1 in (number, *received)


def forward_signal(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the ranks and wait until they have ended, without taking their exit codes from torchrun.

    torchrun stands still meanwhile: it would stop the other ranks of this node as soon as the first one has ended.
    """
    told = told_already(number, _received)
    _received.append(number)
    if told:
        return
    ranks = children(os.getpid())
    if not ranks:
        raise SystemExit(128 + number)
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank, FORWARDED[signal.Signals(number)])  # torchrun makes each rank the leader of a group
    for rank in ranks:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, rank, os.WEXITED | os.WNOWAIT)
    if os.getppid() != PARENT:
        # netlab was killed: nobody would stop this node while torchrun waits for the others (300 s).
        os._exit(128 + number)


def hear_signals() -> None:
    """Forward signals from now on; before there are ranks, one ends this process. What nohup ignores stays ignored."""
    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward_signal)


def restart_only_failures() -> None:
    """Keep torchrun from restarting ranks that were told to stop, or whose exit code says that it cannot help.

    torchrun has no such setting: its agent is told that no restart is left (read in torch 2.13).
    """
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    monitor = LocalElasticAgent._monitor_workers

    def watched(self: Any, group: Any) -> Any:
        result = monitor(self, group)
        if result.is_failed():
            codes = [failure.exitcode for failure in result.failures.values()]
            if _received or any(code in FINAL_CODES for code in codes):
                self._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = watched  # type: ignore[method-assign]


def literal(argv: Sequence[str]) -> list[str]:
    """torchrun's arguments with the command's words kept from its substitution (`$local_rank`; `$$` would be `$`)."""
    cut = argv.index("--no-python") + 2 if "--no-python" in argv else len(argv)
    return [*argv[:cut], *(word.replace("$", "$$") for word in argv[cut:])]


def main(argv: Sequence[str], name: str = "netlab") -> int:
    """Run torchrun and return 0 or the exit code of the first rank that failed (128 + n for signal n).

    Args:
        argv: torchrun's arguments.
        name: what messages begin with.
    """
    hear_signals()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    restart_only_failures()
    # With one store for all restarts, gloo reads the addresses of the ranks that have died (seen with torch 2.13).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    own = ["--signals-to-handle", "SIGUSR2", "--monitor-interval", "0.05"]  # it must handle one, none of ours
    try:
        run(parse_args([*own, *literal(argv)]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"{name}: rank {rank} ended with exit code {code}", file=sys.stderr)
        return code
    except SystemExit as stopped:  # by a signal, without ranks
        return int(stopped.code or 0)
    return 0


def leave(code: int) -> None:
    """End this process at once: unloading torch takes seconds on a busy machine."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))  # netlab orders the failures of nodes by when they end
