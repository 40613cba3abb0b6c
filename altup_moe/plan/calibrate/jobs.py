"""Jobs that ranks run to measure: `python -m altup_moe.plan.calibrate.jobs JOB ARGUMENT DIRECTORY` is one rank.

Each job imports only what it needs, because a rank takes seconds to import megatron.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.parallel.start_ranks import Start, on_ranks, write_result


def run_job(ranks: int, job: str, argument: str = "", start: Start | None = None) -> list[Any]:
    """Run one of `JOBS` on `ranks` ranks. Returns their results in the order of the ranks.

    Args:
        start: starts the ranks, for example on nodes of a netlab; None starts processes of this machine.
    Raises:
        RankError: a rank failed.
    """
    return on_ranks(ranks, "altup_moe.plan.calibrate.jobs", [job, argument], start=start)


def _layout(name: str, directory: str) -> Any:
    """Timed steps of one of `LAYOUTS`: a list of `TimedStep` as lists."""
    from altup_moe.config.checks import num_microbatches
    from altup_moe.plan.calibrate.layouts import LAYOUTS, STEPS
    from altup_moe.plan.calibrate.process_group import gloo_group
    from altup_moe.plan.calibrate.timed_steps import random_batches, timed_steps

    config = LAYOUTS[name][1]
    with gloo_group(directory) as (_, size):
        return timed_steps(config, random_batches(config, num_microbatches(config, size)), STEPS)


def _pieces(argument: str, directory: str) -> Any:
    """What this core takes for products, pieces and calls."""
    from altup_moe.plan.calibrate.call_overhead import calls_us
    from altup_moe.plan.calibrate.pieces import pieces_ns
    from altup_moe.plan.calibrate.products import large_rates, product_gflops

    forward, backward = product_gflops()
    found = {"forward_gflops": forward, "backward_gflops": backward, "pieces_ns": pieces_ns()}
    return {**found, "large": large_rates(), "calls_us": calls_us()}


def _sample(argument: str, directory: str) -> Any:
    """Seconds of a fixed sample of work."""
    from altup_moe.plan.calibrate.products import sample_seconds

    return sample_seconds()


def _operations(argument: str, directory: str) -> Any:
    """Microseconds of every collective, between two ranks."""
    from altup_moe.plan.calibrate.collective_times import collective_times

    return collective_times(directory)


JOBS: dict[str, Callable[[str, str], Any]] = {
    "layout": _layout,
    "pieces": _pieces,
    "sample": _sample,
    "operations": _operations,
}
"""Name -> function of (argument, directory); the result has JSON's types."""


def main(job: str, argument: str, directory: str) -> None:
    """Do a job as one of the ranks, with one thread."""
    import torch

    torch.set_num_threads(1)
    with LibraryWarnings():
        write_result(directory, JOBS[job](argument, directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
