"""Run a function on n gloo ranks of this machine and bring back what each returned.

Ranks are forked from a server that has torch and Megatron imported, so that starting some costs a second, not ten.
They meet in a file, not on a port. A rank that fails or hangs ends all of them, and none outlives the call.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["altup_moe.train.loop", "altup_moe.model.reference.gpt", "tests.distributed.ranks"])


def _rank_main(rank: int, size: int, store: str, function: Callable, args: tuple, results: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=90)
        )
        results.put((rank, None, function(*args)))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), None))


@contextmanager
def start_ranks(size: int, function: Callable, *args: Any) -> Iterator[tuple[list[Any], Any]]:
    """(processes, queue of results) of `size` ranks that run `function(*args)`; none is left afterwards."""
    results = _context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        store = str(Path(directory) / "store")
        ranks = [
            _context.Process(target=_rank_main, args=(rank, size, store, function, args, results), daemon=True)
            for rank in range(size)
        ]
        for process in ranks:
            process.start()
        try:
            yield ranks, results
        finally:
            for process in ranks:
                process.kill()
                process.join()


def run_ranks(size: int, function: Callable, *args: Any, timeout: float = 120.0) -> list[Any]:
    """`function(*args)` on `size` ranks (torch.distributed is started); returns their results by rank.

    Raises:
        RuntimeError: a rank failed (its traceback), or the time ran out.
    """
    with start_ranks(size, function, *args) as (ranks, results):
        returned = _collect(size, results, time.monotonic() + timeout)
        for process in ranks:
            process.join(5)
        return returned


def _collect(size: int, results: Any, deadline: float) -> list[Any]:
    returned: dict[int, Any] = {}
    while len(returned) < size:
        try:
            rank, error, value = results.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            missing = sorted(set(range(size)) - set(returned))
            raise RuntimeError(f"ranks {missing} did not finish in time") from None
        if error is not None:
            raise RuntimeError(f"rank {rank} failed:\n{error}")
        returned[rank] = value
    return [returned[rank] for rank in range(size)]
