"""Time every collective between two ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from altup_moe.plan.calibrate.process_group import gloo_group
from altup_moe.plan.cpu_cost_model import MESSAGES


def collective_times(directory: str) -> dict[str, list[list[float]]]:
    """As one of two ranks: microseconds of repeated calls, for every collective and each size of `MESSAGES`."""
    with gloo_group(directory) as (rank, _):
        other, received = 1 - rank, torch.empty(MESSAGES[-1] // 4)

        def send(message: torch.Tensor) -> None:
            """There and back: two sends."""
            for sender in (0, 1):
                work = dist.isend(message, other) if rank == sender else dist.irecv(received[: len(message)], other)
                assert work is not None
                work.wait()

        collectives: dict[str, Callable[[torch.Tensor], object]] = {
            "all_reduce": dist.all_reduce,
            "all_gather": lambda x: dist.all_gather_into_tensor(torch.empty(2 * len(x)), x),
            "reduce_scatter": lambda x: dist.reduce_scatter_tensor(torch.empty(len(x) // 2), x),
            "all_to_all": lambda x: dist.all_to_all_single(torch.empty_like(x), x),
            "send": send,
        }
        # Share of a call's input that leaves the rank.
        shares = {"all_reduce": 1.0, "all_gather": 1.0, "reduce_scatter": 0.5, "all_to_all": 0.5, "send": 1.0}
        found = {}
        for name, collective in collectives.items():
            calls = 2 if name == "send" else 1
            sizes = [int(sent / shares[name]) // 4 for sent in MESSAGES]
            found[name] = [[1e6 * s / calls for s in _call_times(collective, torch.randn(n))] for n in sizes]
        return found


def _call_times(collective: Callable[[torch.Tensor], object], message: torch.Tensor, repeats: int = 9) -> list[float]:
    """Wall-clock seconds of each call, with about a millisecond of products before it, as in a small layer.

    Without that pause a link's buffer is never empty; after a longer pause it always is.
    """
    taken, factor = [], torch.randn(384, 384)
    for _ in range(repeats):
        factor @ factor
        begin = time.perf_counter()
        collective(message)
        taken.append(time.perf_counter() - begin)
    return taken
