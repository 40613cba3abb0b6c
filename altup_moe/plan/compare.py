"""Planned step times beside measured ones: small runs on this machine's cores under eight layouts. It runs torch."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.step import plan_step

_MODEL = ModelConfig(4, 256, 704, 8, 4, 256, 2048, share_embeddings_and_output_weights=False)
_EXPERTS = MoEConfig(4, ffn_hidden_size=352)
_BASE = RunConfig(_MODEL, AltUpConfig(width=2), _EXPERTS, train=TrainConfig(micro_batch_size=2, global_batch_size=8))
_DENSE = replace(_BASE, moe=MoEConfig())

LAYOUTS: dict[str, tuple[int, RunConfig]] = {
    "dense, K 4": (1, replace(_DENSE, altup=AltUpConfig(width=4))),
    "experts": (1, _BASE),
    "experts, recomputed": (1, replace(_BASE, train=replace(_BASE.train, recompute="full"))),
    "experts, DP 2": (2, _BASE),
    "experts, EP 2": (2, replace(_BASE, parallel=ParallelConfig(expert=2))),
    "experts, PP 2": (2, replace(_BASE, parallel=ParallelConfig(pipeline=2))),
    "dense, TP 2": (2, replace(_DENSE, parallel=ParallelConfig(tensor=2))),
    "dense, PP 2, VP 2": (2, replace(_DENSE, parallel=ParallelConfig(pipeline=2, virtual_pipeline=2))),
}
"""Name -> (ranks, run); no more ranks than two cores have."""


@dataclass(frozen=True)
class Compared:
    """Seconds of a step: the slowest rank's median, and the plan's."""

    name: str
    measured: float
    planned: float


def compare(cluster: Cluster, steps: int = 7) -> Iterator[Compared]:
    """One layout after another, `steps` timed steps of each after two that are not."""
    for name, (ranks, config) in LAYOUTS.items():
        yield Compared(name, _measured(ranks, config, steps), plan_step(config, cluster, ranks).seconds)


def pairs_in_order(compared: Sequence[Compared]) -> tuple[int, int]:
    """(pairs of layouts that the plan puts in the measured order, all pairs)."""
    pairs = list(itertools.combinations(compared, 2))
    agree = sum((a.measured < b.measured) == (a.planned < b.planned) for a, b in pairs)
    return agree, len(pairs)


def _measured(ranks: int, config: RunConfig, steps: int) -> float:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as directory:
        mp.spawn(_rank, (ranks, directory, config, steps), nprocs=ranks)
        return max(float(path.read_text(encoding="utf-8")) for path in Path(directory).glob("*.seconds"))


def _rank(rank: int, ranks: int, directory: str, config: RunConfig, steps: int) -> None:
    import torch
    import torch.distributed as dist

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import train_step

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=ranks)
    with topology(config.parallel) as topo:
        engine, batches = build_engine(config, topo), _batches(config, num_microbatches(config, ranks))
        taken = []
        for _ in range(steps + 2):
            dist.barrier()
            begin = time.perf_counter()
            train_step(engine, batches, config, topo)
            taken.append(time.perf_counter() - begin)
    (Path(directory) / f"{rank}.seconds").write_text(str(statistics.median(taken[2:])), encoding="utf-8")
    dist.destroy_process_group()


def _batches(config: RunConfig, count: int) -> list[Any]:
    import torch

    from altup_moe.train.batches import Batch

    m, generator = config.model, torch.Generator().manual_seed(config.train.seed)
    shape = (config.train.micro_batch_size, m.seq_length + 1)
    ids = [torch.randint(0, m.vocab_size, shape, generator=generator) for _ in range(count)]
    return [Batch(i[:, :-1], i[:, 1:], torch.ones(i[:, 1:].shape)) for i in ids]
