"""The one place that starts process groups: a layout in, a `Topology` out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps
from megatron.core.process_groups_config import ProcessGroupCollection

from altup_moe.config import ParallelConfig
from altup_moe.parallel import compat, cpu, death_record, gloo_device, release


@dataclass(frozen=True)
class Topology:
    """Where this process stands. Sizes and ranks, groups as arguments for Megatron's modules."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    virtual_size: int
    expert_rank: int
    expert_size: int
    expert_tensor_rank: int
    expert_tensor_size: int
    data_rank: int
    data_size: int
    context_size: int
    device: torch.device
    groups: ProcessGroupCollection

    @property
    def is_first(self) -> bool:
        """Rank 0 of the world: the one that writes and prints."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the end of the pipeline (and so the loss)."""
        return self.pipeline_rank == self.pipeline_size - 1


def start(parallel: ParallelConfig, timeout_seconds: float = 600.0, store: Any = None) -> Topology:
    """Start `torch.distributed` (if it is not started) and Megatron's groups.

    Under torchrun or deepspeed the environment gives rank and world size; alone it is a world of one.

    Args:
        parallel: a layout that `check_config` accepted for this world size.
        timeout_seconds: how long a collective may wait before the process fails.
        store: where ranks meet; None is as the environment says.
    """
    on_cpu = cpu.enable()
    compat.mend_megatron()
    if on_cpu:
        gloo_device.share_device()
    if not dist.is_initialized():
        for key, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
            os.environ.setdefault(key, default)
        alone = os.environ["WORLD_SIZE"] == "1" and "MASTER_PORT" not in os.environ
        if not on_cpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(
            backend="gloo" if on_cpu else "nccl",
            timeout=timedelta(seconds=timeout_seconds),
            # A world of one needs no port: a store in this process cannot collide with another run's.
            store=dist.HashStore() if alone else store,
            rank=int(os.environ["RANK"]) if alone or store is not None else -1,
            world_size=int(os.environ["WORLD_SIZE"]) if alone or store is not None else -1,
        )
    ps.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        distributed_timeout_minutes=max(1, round(timeout_seconds / 60)),
        create_gloo_process_groups=False,
    )
    return Topology(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=ps.get_tensor_model_parallel_rank(),
        tensor_size=parallel.tensor,
        pipeline_rank=ps.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel.pipeline,
        virtual_size=parallel.virtual_pipeline,
        expert_rank=ps.get_expert_model_parallel_rank(),
        expert_size=parallel.expert,
        expert_tensor_rank=ps.get_expert_tensor_parallel_rank(),
        expert_tensor_size=parallel.expert_tensor,
        data_rank=ps.get_data_parallel_rank(),
        data_size=ps.get_data_parallel_world_size(),
        context_size=parallel.context,
        device=torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device()),
        groups=ProcessGroupCollection.use_mpu_process_groups(),
    )


@contextmanager
def topology(parallel: ParallelConfig, timeout_seconds: float = 600.0, store: Any = None) -> Iterator[Topology]:
    """`start` around a block; afterwards, also on failure, everything that it started is taken down."""
    ours = not dist.is_initialized()
    before = release.groups()
    try:
        yield start(parallel, timeout_seconds, store)
        if not ours:
            # A rank that leaves at once would break connections that another one still makes.
            dist.barrier()
    except BaseException as error:
        # Before connections are closed: other ranks fail because of that, and later.
        death_record.leave(error)
        raise
    finally:
        release.release(keep=before)
        if ours and dist.is_initialized():
            dist.destroy_process_group()


def layout_exists() -> bool:
    """Whether this process has Megatron's groups already: of a layout that has not ended."""
    return ps.model_parallel_is_initialized()


def rank_from_env() -> int:
    """This process's rank as the launcher set it (0 alone), before any process group exists."""
    return int(os.environ.get("RANK", "0"))


def own_rank() -> int:
    """This process's rank: in torch.distributed's world where one exists, else as the launcher set it."""
    return dist.get_rank() if dist.is_initialized() else rank_from_env()
