"""A gloo group of the ranks of one job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from altup_moe.parallel.start_ranks import store_url


@contextmanager
def gloo_group(directory: str) -> Iterator[tuple[int, int]]:
    """Join the group of all ranks of a job (`start_ranks`); `directory` is the job's. Yields (rank, ranks)."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=store_url(directory), rank=rank, world_size=size)
    yield rank, size
    dist.destroy_process_group()
