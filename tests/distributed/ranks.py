"""Run a function on n gloo ranks of this machine and bring back what each returned.

Ranks live on: a process of the tests starts as many as its largest case needs (`run_ranks`), and a case gets a
torch.distributed world of its own on the first n of them. Between cases a rank undoes what a case may change (`clean`).
A case that fails, dies or hangs ends all ranks, so that no later case meets them; the next one starts others.
Cases that patch modules, kill, or want to be the first in their process ask for ranks of their own (`run_fresh_ranks`).

Ranks are forked from a server that has torch and Megatron imported, meet in a file, not on a port, and die with
the process of the tests, in the middle of a case too.
"""

from __future__ import annotations

import atexit
import multiprocessing as mp
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = mp.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.distributed.preload", "altup_moe.model.reference.gpt", "tests.distributed.ranks"]
)

TIMEOUT = 120.0
"""Seconds that a case may take."""
LAST_WORDS = 3.0
"""Seconds that the other ranks have, once one failed, to say why they did: a rank whose peer is gone fails first."""

started = 0
"""Rank processes that this process has started so far."""
search_path = ""
"""Name of what ranks find besides (set around tests with a stand-in): ranks of one name live on together."""


@dataclass(frozen=True)
class _Rank:
    process: BaseProcess
    pipe: Connection


class Pool:
    """Living ranks, as many as its largest case so far has needed."""

    def __init__(self) -> None:
        self._ranks: list[_Rank] = []

    @property
    def processes(self) -> list[BaseProcess]:
        """The ranks' processes, by rank."""
        return [rank.process for rank in self._ranks]

    def begin(self, size: int, function: Callable, args: tuple, store: Path) -> None:
        """Have the first `size` ranks call `function(*args)`, in a world that meets in the file `store`."""
        while len(self._ranks) < size:
            self._ranks.append(_start(len(self._ranks)))
        for rank in self._ranks[:size]:
            rank.pipe.send_bytes(pickle.dumps((size, str(store), os.getcwd(), function, args)))

    def run(self, size: int, function: Callable, args: tuple, timeout: float) -> list[Any]:
        """What each rank returned. After an error no rank is left.

        Raises:
            RuntimeError: ranks failed (their tracebacks), died, or did not finish in time.
        """
        try:
            with tempfile.TemporaryDirectory() as directory:
                self.begin(size, function, args, Path(directory) / "store")
                return self._results(size, time.monotonic() + timeout)
        except BaseException:
            self.end()
            raise

    def _results(self, size: int, deadline: float) -> list[Any]:
        waiting = dict(enumerate(self._ranks[:size]))
        returned: dict[int, Any] = {}
        problems: list[str] = []
        while waiting:
            sources = [source for rank in waiting.values() for source in (rank.pipe, rank.process.sentinel)]
            ready = wait(sources, max(0.0, deadline - time.monotonic()))
            if not ready:
                if not problems:
                    problems.append(f"ranks {sorted(waiting)} did not finish in time")
                break
            for number, rank in list(waiting.items()):
                if rank.pipe not in ready and rank.process.sentinel not in ready:
                    continue
                del waiting[number]
                try:
                    problem, returned[number] = pickle.loads(rank.pipe.recv_bytes())
                except (EOFError, ConnectionError):
                    problem = f"died of {_cause(rank.process)}"
                if problem is not None:
                    problems.append(f"rank {number} {problem}")
                    deadline = min(deadline, time.monotonic() + LAST_WORDS)
        if problems:
            raise RuntimeError("\n".join(problems))
        return [returned[number] for number in range(size)]

    def end(self) -> None:
        """Kill the ranks."""
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()
            rank.process.close()
            rank.pipe.close()
        self._ranks.clear()


def _cause(process: BaseProcess) -> str:
    process.join(5)
    code = process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _start(number: int) -> _Rank:
    global started
    started += 1
    ours, theirs = _context.Pipe()
    process = _context.Process(target=_live, args=(theirs,), name=f"rank {number}", daemon=True)
    process.start()
    theirs.close()
    return _Rank(process, ours)


_pools: defaultdict[str, Pool] = defaultdict(Pool)
"""Living ranks by `search_path`."""


def end_living_ranks(name: str | None = None) -> None:
    """Kill all living ranks, or those of one `search_path`."""
    for pool in _pools.values() if name is None else [_pools[name]]:
        pool.end()


atexit.register(end_living_ranks)


def run_ranks(size: int, function: Callable, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """`function(*args)` on `size` living ranks (torch.distributed is started); returns their results by rank.

    Raises:
        RuntimeError: ranks failed (their tracebacks), died, or did not finish in time.
    """
    return _pools[search_path].run(size, function, args, timeout)


def run_fresh_ranks(size: int, function: Callable, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """`run_ranks` on processes that have run nothing before and are gone afterwards."""
    pool = Pool()
    try:
        return pool.run(size, function, args, timeout)
    finally:
        pool.end()


@contextmanager
def start_ranks(size: int, function: Callable, *args: Any) -> Iterator[list[BaseProcess]]:
    """The processes of `size` fresh ranks that run `function(*args)`; none is left afterwards."""
    pool = Pool()
    with tempfile.TemporaryDirectory() as directory:
        try:
            pool.begin(size, function, args, Path(directory) / "store")
            yield pool.processes
        finally:
            pool.end()


def _live(pipe: Connection) -> None:
    """What a rank does: case after case, until nobody is left to send one."""
    import tests.distributed.preload  # noqa: F401  # there already, unless this one was not forked from the server
    from tests.distributed.clean import State

    # Forked from the server, which lives as long as a rank does: whether the tests' process lives is seen otherwise.
    threading.Thread(target=_die_with, args=(mp.parent_process(),), daemon=True).start()
    state = State()
    number = int(mp.current_process().name.removeprefix("rank "))
    while True:
        try:
            case = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(pickle.dumps(_call(number, case)))
        state.restore()


def _die_with(process: Any) -> None:
    process.join()
    os._exit(1)


def _call(number: int, case: bytes) -> tuple[str | None, Any]:
    """(what is wrong, what the function returned)."""
    import torch.distributed as dist

    try:
        size, store, directory, function, args = pickle.loads(case)
        os.chdir(directory)
        os.environ.update(RANK=str(number), WORLD_SIZE=str(size), LOCAL_RANK=str(number))
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=number, world_size=size, timeout=timedelta(seconds=90)
        )
        value = function(*args)
        if dist.is_initialized():
            # A rank that leaves at once would break connections that another one still makes.
            dist.barrier()
            dist.destroy_process_group()
        # Here, so that what cannot be sent is the rank's failure.
        pickle.dumps(value)
        return None, value
    except BaseException:
        return f"failed:\n{traceback.format_exc()}", None
