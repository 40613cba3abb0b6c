"""Time training steps on random tokens."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import torch.distributed as dist

from altup_moe.config import RunConfig
from altup_moe.parallel.topology import topology
from altup_moe.plan.routes import rank_imbalance
from altup_moe.train.batches import Batch
from altup_moe.train.engine import build_engine
from altup_moe.train.step import train_step

WARM_UP_STEPS = 2


class TimedStep(NamedTuple):
    """One step of one rank.

    ``seconds``: wall-clock time. ``busy``: processor time of all threads. ``imbalance``: rows of the fullest expert
    rank over the mean, averaged over the layers; 1 without experts.
    """

    seconds: float
    busy: float
    imbalance: float


def random_batches(config: RunConfig, count: int) -> list[Batch]:
    """`count` micro-batches of random tokens, [micro-batch size, sequence length] each."""
    m, generator = config.model, torch.Generator().manual_seed(config.train.seed)
    shape = (config.train.micro_batch_size, m.seq_length + 1)
    ids = [torch.randint(0, m.vocab_size, shape, generator=generator) for _ in range(count)]
    return [Batch(i[:, :-1], i[:, 1:], torch.ones(i[:, 1:].shape)) for i in ids]


def timed_steps(config: RunConfig, batches: list[Batch], steps: int) -> list[TimedStep]:
    """Time `steps` steps on the same micro-batches, after `WARM_UP_STEPS` more. A process group must exist."""
    taken = []
    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        for _ in range(steps + WARM_UP_STEPS):
            dist.barrier()
            begin = time.perf_counter(), time.process_time()
            routing = train_step(engine, batches, config, topo).routing
            seconds, busy = time.perf_counter() - begin[0], time.process_time() - begin[1]
            imbalance = rank_imbalance(routing.counts, config.parallel.expert) if routing else 1.0
            taken.append(TimedStep(seconds, busy, imbalance))
    return taken[WARM_UP_STEPS:]
