"""Ranks that measure: processes of `python -m altup_moe.plan.ranks JOB ARGUMENT DIRECTORY`, however they are started.

Each finds its number in RANK and WORLD_SIZE, meets the others through a file, and writes what it found.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from altup_moe.config import RunConfig, UserError

if TYPE_CHECKING:
    import torch

Start = Callable[[int, list[str]], int]
"""(ranks, command) -> exit code, once all have ended."""


def here(ranks: int, command: list[str]) -> int:
    """Processes of this machine."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    started = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(ranks)]
    return max(process.wait() for process in started)


def on_ranks(ranks: int, job: str, argument: str = "", start: Start = here) -> list[Any]:
    """What each rank found. Raises UserError if one fails."""
    with tempfile.TemporaryDirectory() as directory:
        code = start(ranks, [sys.executable, "-m", "altup_moe.plan.ranks", job, argument, directory])
        if code:
            raise UserError(f"{job} {argument}: a rank ended with exit code {code}")
        return [json.loads((Path(directory) / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]


@contextmanager
def group(directory: str) -> Iterator[tuple[int, int]]:
    """A gloo group of all ranks: (rank, how many)."""
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=size)
    yield rank, size
    dist.destroy_process_group()


def batches(config: RunConfig, count: int) -> list[Any]:
    """So many micro-batches of random tokens."""
    import torch

    from altup_moe.train.batches import Batch

    m, generator = config.model, torch.Generator().manual_seed(config.train.seed)
    shape = (config.train.micro_batch_size, m.seq_length + 1)
    ids = [torch.randint(0, m.vocab_size, shape, generator=generator) for _ in range(count)]
    return [Batch(i[:, :-1], i[:, 1:], torch.ones(i[:, 1:].shape)) for i in ids]


class TimedStep(NamedTuple):
    """Seconds by the clock and by the processor (all threads), and how uneven the experts' ranks were.

    ``imbalance``: rows of the fullest expert rank over the mean, mean of the layers; 1 without experts.
    """

    seconds: float
    busy: float
    imbalance: float


def timed_steps(config: RunConfig, given: list[Any], steps: int) -> list[TimedStep]:
    """So many steps, after two that are not timed. A group must exist."""
    import torch.distributed as dist

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import train_step

    taken = []
    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        for _ in range(steps + 2):
            dist.barrier()
            begin = time.perf_counter(), time.process_time()
            routing = train_step(engine, given, config, topo).routing
            seconds, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
            uneven = rank_imbalance(routing.counts, config.parallel.expert) if routing else 1.0
            taken.append(TimedStep(seconds, busy, uneven))
    return taken[2:]


def rank_imbalance(counts: Sequence[Sequence[float]], ranks: int) -> float:
    """Rows of the fullest of so many expert ranks over the mean, mean of the layers. ``counts[layer][expert]``."""
    sums = [
        [sum(layer[i : i + len(layer) // ranks]) for i in range(0, len(layer), len(layer) // ranks)] for layer in counts
    ]
    found = [max(by_rank) * ranks / sum(by_rank) for by_rank in sums if sum(by_rank)]
    return statistics.mean(found) if found else 1.0


def _layout(name: str, directory: str) -> Any:
    from altup_moe.config.checks import num_microbatches
    from altup_moe.plan.compare import LAYOUTS, STEPS

    config = LAYOUTS[name][1]
    with group(directory) as (_, size):
        return timed_steps(config, batches(config, num_microbatches(config, size)), STEPS)


def _pieces(argument: str, directory: str) -> Any:
    from altup_moe.plan import measure_pieces as pieces

    forward, backward = pieces.product_gflops()
    found = {"forward_gflops": forward, "backward_gflops": backward, "pieces_ns": pieces.pieces_ns()}
    return {**found, "large": pieces.large_rates(), "calls_us": pieces.calls_us()}


def _sample(argument: str, directory: str) -> Any:
    from altup_moe.plan.measure_pieces import sample_seconds

    return sample_seconds()


def _operations(argument: str, directory: str) -> Any:
    """Microseconds of calls of every collective between two ranks: a list for each of `MESSAGES`."""
    import torch
    import torch.distributed as dist

    from altup_moe.plan.cpu_cost_model import MESSAGES

    with group(directory) as (rank, _):
        other, received = 1 - rank, torch.empty(MESSAGES[-1] // 4)

        def send(whole: torch.Tensor) -> None:
            # There and back.
            for sender in (0, 1):
                work = dist.isend(whole, other) if rank == sender else dist.irecv(received[: len(whole)], other)
                assert work is not None
                work.wait()

        works: dict[str, Callable[[torch.Tensor], object]] = {
            "all_reduce": dist.all_reduce,
            "all_gather": lambda x: dist.all_gather_into_tensor(torch.empty(2 * len(x)), x),
            "reduce_scatter": lambda x: dist.reduce_scatter_tensor(torch.empty(len(x) // 2), x),
            "all_to_all": lambda x: dist.all_to_all_single(torch.empty_like(x), x),
            "send": send,
        }
        # Bytes sent of those handed in, and calls of a work.
        shares = {"all_reduce": 1.0, "all_gather": 1.0, "reduce_scatter": 0.5, "all_to_all": 0.5, "send": 1.0}
        found = {}
        for name, work in works.items():
            calls = 2 if name == "send" else 1
            sizes = [int(sent / shares[name]) // 4 for sent in MESSAGES]
            found[name] = [[1e6 * s / calls for s in _calls(work, torch.randn(size))] for size in sizes]
        return found


def _calls(work: Callable[[torch.Tensor], object], given: torch.Tensor, repeats: int = 9) -> list[float]:
    """Seconds of works, each about a millisecond of products after the one before, as between two of a small layer's.

    Without that pause a link's buffer is never empty, after a longer one always.
    """
    import torch

    taken, factor = [], torch.randn(384, 384)
    for _ in range(repeats):
        factor @ factor
        begin = time.perf_counter()
        work(given)
        taken.append(time.perf_counter() - begin)
    return taken


JOBS: dict[str, Callable[[str, str], Any]] = {
    "layout": _layout,
    "pieces": _pieces,
    "sample": _sample,
    "operations": _operations,
}


def main(job: str, argument: str, directory: str) -> None:
    """Do a job as one of the ranks."""
    import torch

    torch.set_num_threads(1)
    found = JOBS[job](argument, directory)
    (Path(directory) / f"{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
