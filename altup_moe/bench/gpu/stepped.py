"""Steps of a small run in processes of their own: what it loses, what it saves, what memory it takes."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from altup_moe.bench.gpu.jobs import in_a_line, run_job
from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.load import from_dict
from altup_moe.parallel.seeds import derived_seed
from altup_moe.parallel.start_ranks import store_url
from altup_moe.parallel.topology import Topology, topology
from altup_moe.train.batches import Batch
from altup_moe.train.metrics import peak_memory_gib
from altup_moe.train.resume import find_resume_point, verified
from altup_moe.train.run import build_run, restore_run, start_save, take_step


@dataclass(frozen=True)
class Stepped:
    """What a rank has seen of a run. ``losses``: one of each step it took. ``peak``: GiB. ``error``: why it failed."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    peak: float = 0.0
    error: str = ""


def stepped(
    config: RunConfig,
    until: int,
    directory: Path,
    *,
    ranks: int = 1,
    save: bool = False,
    environment: Any = None,
    timeout: float | None = None,
) -> list[Stepped]:
    """Step a run in fresh processes up to a step. It goes on from the newest checkpoint of its directory.

    Args:
        directory: of the run. save: leave a checkpoint of the last step there. environment: variables of the ranks.
        timeout: seconds.
    Returns:
        What each rank has seen.
    Raises:
        RankError: a rank failed, or took too long.
    """
    config = replace(config, log=replace(config.log, run_dir=str(directory), tensorboard=False))
    check_config(config, ranks)
    argument = {"runs": [config.to_dict()], "until": until, "save": save}
    return [Stepped(**one) for (one,) in run_job("stepped", argument, ranks, environment, timeout)]


def stepped_in_turn(runs: Iterable[RunConfig], until: int, directory: Path, environment: Any = None) -> list[Stepped]:
    """Step runs of one rank, one after another in one fresh process, which saves starts. One that fails says why."""
    runs = [replace(run, log=replace(run.log, run_dir=f"{directory}/{n}")) for n, run in enumerate(runs)]
    for run in runs:
        check_config(run, 1)
    argument = {"runs": [run.to_dict() for run in runs], "until": until, "save": False, "go_on": True}
    return [Stepped(**one) for one in run_job("stepped", argument, 1, environment)[0]]


def apart(one: Stepped, other: Stepped) -> float:
    """Largest relative difference of their losses; NaN if one of them failed."""
    if one.error or other.error:
        return math.nan
    return max(abs(a / b - 1) for a, b in zip(one.losses, other.losses, strict=True))


def stepped_job(argument: dict[str, Any], directory: str) -> list[dict[str, Any]]:
    """The work of a rank."""
    found = []
    with _world(directory):
        for values in argument["runs"]:
            try:
                found.append(_stepped(from_dict(values), argument["until"], argument["save"]))
            except Exception as error:
                if not argument.get("go_on"):
                    raise
                found.append({"error": in_a_line(error)})
            gc.collect()
    return found


def _stepped(config: RunConfig, until: int, save: bool) -> dict[str, Any]:
    losses, norms = [], []
    with topology(config.parallel) as topo:
        run = build_run(config, topo, None)
        if (point := find_resume_point(config)) is not None:
            restore_run(run, verified(config, point, topo))
        while run.step < until:
            record = take_step(run, batches(config, run.step, topo))
            losses.append(record.loss)
            norms.append(record.grad_norm)
        if save:
            start_save(run)
            run.saver.conclude()
        run.profile.close()
    return {"losses": losses, "grad_norms": norms, "peak": peak_memory_gib()}


@contextmanager
def _world(directory: str) -> Iterator[None]:
    """Several ranks meet over gloo, and share the GPU if there is one: NCCL takes no two ranks on one."""
    if os.environ["WORLD_SIZE"] == "1":
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(0)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=store_url(directory), rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def batches(config: RunConfig, step: int, topo: Topology) -> list[Batch]:
    """This rank's micro-batches of a step, the same in every process: frequent and rare tokens, labels that do not
    count at uneven places."""
    m, t = config.model, config.train
    generator = torch.Generator().manual_seed(derived_seed(t.seed, "bench gpu", step))
    shape = (t.global_batch_size, m.seq_length + 1)
    tokens = (m.vocab_size * torch.rand(shape, generator=generator) ** 3).long()
    mask = (torch.rand(shape[0], m.seq_length, generator=generator) < 0.9).float()
    size = t.micro_batch_size
    firsts = range(topo.data_rank * size, t.global_batch_size, size * topo.data_size)
    return [Batch(tokens[i : i + size, :-1], tokens[i : i + size, 1:], mask[i : i + size]) for i in firsts]
