"""From a checked configuration to this rank's model chunks, seeded by global name, wrapped for data parallelism."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.common.language_module.language_module import LanguageModule
from torch import Tensor, nn

from altup_moe.altup.lazy import load_object
from altup_moe.config import RunConfig
from altup_moe.model.specs import first_layer
from altup_moe.parallel.compat import mark_expert_parameters
from altup_moe.parallel.parameter_mapping import NamedTensor, Shard, TensorSlice, pieces
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.parametrization import kind_of
from altup_moe.parallel.release import end_with_topology
from altup_moe.parallel.rng import seed_dropout
from altup_moe.parallel.seeds import initial
from altup_moe.parallel.topology import Topology

WeightSource = Callable[[str, tuple[int, ...], TensorSlice, RunConfig], Tensor]
"""(global name, global shape, slice, run) -> the slice's values, as `parallel.seeds.initial` gives them."""


def shard_of(topology: Topology) -> Shard:
    """This rank's place among those that share parameters."""
    return Shard(
        tensor=(topology.tensor_rank, topology.tensor_size),
        expert=(topology.expert_rank, topology.expert_size),
        expert_tensor=(topology.expert_tensor_rank, topology.expert_tensor_size),
    )


def build_chunk(config: RunConfig, topology: Topology, vp_stage: int | None) -> LanguageModule:
    """One model chunk, its weights not yet set."""
    stages = max(1, topology.virtual_size) - 1
    first = topology.pipeline_rank == 0 and vp_stage in (None, 0)
    last = topology.is_last_stage and vp_stage in (None, stages)
    chunk: LanguageModule = load_object(config.model.architecture.megatron)(config, topology, first, last, vp_stage)
    mark_expert_parameters(chunk)
    return chunk.to(topology.device)


def named_tensors(chunks: list[nn.Module], config: RunConfig, topology: Topology) -> Iterator[NamedTensor]:
    """Every parameter and persistent buffer of this rank's chunks (wrapped for data parallelism or not)."""
    shard = shard_of(topology)
    for index, chunk in enumerate(chunks):
        module: Any = getattr(chunk, "module", chunk)
        offset = first_layer(module.config, topology.pipeline_rank, module.vp_stage)
        buffers = {name: b for name, b in module.named_buffers() if is_buffer(name)}
        for name, tensor in (*module.named_parameters(), *buffers.items()):
            yield NamedTensor(index, name, tensor, pieces(name, offset, shard, config))


@torch.no_grad()
def set_weights(chunks: list[nn.Module], config: RunConfig, topology: Topology, value: WeightSource = initial) -> None:
    """Set every weight from its global name (by default as parallel.seeds does): any layout, no communication."""
    for entry in named_tensors(chunks, config, topology):
        for piece in entry.pieces:
            entry.tensor[piece.local_index].copy_(value(piece.name, piece.shape, piece.global_slice, config))


def mark_sharded(chunks: list[nn.Module], config: RunConfig, topology: Topology) -> None:
    """Say which parameters differ between tensor ranks, for the gradient norm.

    Megatron counts a parameter without ``tensor_model_parallel`` on tensor rank 0 alone, and sets the mark only where
    it draws weights itself, which we do not let it. Experts always count: each rank of their norm's group holds others.
    """
    for entry in named_tensors(chunks, config, topology):
        slices = [(piece.shape, tuple(stop - start for start, stop in piece.global_slice)) for piece in entry.pieces]
        part = any(shape != held for shape, held in slices)
        entry.tensor.tensor_model_parallel = part or ".experts." in entry.name  # type: ignore[attr-defined]


def mark_kinds(chunks: list[nn.Module], config: RunConfig, topology: Topology) -> None:
    """Say what each parameter is (`parallel.parametrization`), for the optimizer's groups."""
    for entry in named_tensors(chunks, config, topology):
        (kind,) = {kind_of(piece.name, config) for piece in entry.pieces}
        entry.tensor.kind = kind  # type: ignore[attr-defined]


def bare_chunks(config: RunConfig, topology: Topology, value: WeightSource = initial) -> list[LanguageModule]:
    """This rank's model chunks (one, or parallel.virtual_pipeline of them) with their weights, not yet wrapped."""
    seed_dropout(config.train.seed, topology)
    stages: list[int | None] = list(range(topology.virtual_size)) if topology.virtual_size > 1 else [None]
    chunks = [build_chunk(config, topology, stage) for stage in stages]
    set_weights(list(chunks), config, topology, value)
    mark_sharded(list(chunks), config, topology)
    mark_kinds(list(chunks), config, topology)
    return chunks


def build_model(config: RunConfig, topology: Topology, value: WeightSource = initial) -> list[DistributedDataParallel]:
    """This rank's model chunks, wrapped in Megatron's data parallelism and ready for its schedules."""
    chunks = bare_chunks(config, topology, value)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=config.parallel.overlap_grad_reduce,
        use_distributed_optimizer=config.parallel.distributed_optimizer,
    )
    wrapped = [
        DistributedDataParallel(chunk.config, ddp, chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(chunks)
    ]
    for model in wrapped:
        end_with_topology(model)
    return wrapped
