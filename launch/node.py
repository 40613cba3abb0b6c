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

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NETLAB = os.getppid()


def children() -> list[int]:
    """Processes started by this one that have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


def forward(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the ranks and wait until they have ended, without taking their exit codes from torchrun.

    torchrun stands still meanwhile: it would stop the other ranks of this node as soon as the first one has ended.
    """
    ranks = children()
    if not ranks:
        raise SystemExit(128 + number)
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.killpg(rank, number)  # torchrun makes each rank the leader of a group
    for rank in ranks:
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, rank, os.WEXITED | os.WNOWAIT)
    if os.getppid() != NETLAB:
        # netlab was killed: nobody would stop this node while torchrun waits for the others (300 s).
        os._exit(128 + number)


def main(argv: Sequence[str]) -> int:
    """Run torchrun and return 0 or the exit code of the first rank that failed (128 + n for signal n)."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for number in FORWARDED:
        signal.signal(number, forward)
    own = ["--signals-to-handle", "SIGUSR2", "--monitor-interval", "0.05"]  # it must handle one, none of ours
    try:
        run(parse_args([*own, *argv]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        print(f"netlab: rank {rank} ended with exit code {code}", file=sys.stderr)
        return code
    except SystemExit as stopped:  # by a signal, without ranks
        return int(stopped.code or 0)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Unloading torch takes seconds on a busy machine, and netlab orders the failures of nodes by when they end.
    os._exit(code)
