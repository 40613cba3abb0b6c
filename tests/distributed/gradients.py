"""Gradients of one step: of the reference in this process, and of a layout's ranks by global name."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.config import RunConfig
from altup_moe.model.build import build_model, named_tensors
from altup_moe.parallel.parameter_names import ROUTER_BUFFERS
from altup_moe.parallel.topology import topology
from altup_moe.train.batches import Batch
from altup_moe.train.optim import build_optimizer
from altup_moe.train.routing import begin_step, summarise_routing
from altup_moe.train.step import run_schedule
from tests.distributed.cases import gpt_batch, micro_batch_count, skewed, t5_batch


def reference_model(config: RunConfig, weights=skewed):
    """The plain-PyTorch model with the weights that the ranks hold."""
    from altup_moe.model.reference.build import reference_model

    model = reference_model(config)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(ROUTER_BUFFERS) or isinstance(tensor, torch.nn.Parameter):
                shape = tuple(tensor.shape)
                tensor.copy_(weights(name, shape, tuple((0, n) for n in shape), config))
    return model.train()


def batch_of(config: RunConfig, index: int) -> Batch:
    """Micro-batch `index` of a step."""
    return (t5_batch if config.model.arch == "t5" else gpt_batch)(config, index)


def reference_losses(model, batch: Batch):
    """The reference's losses of a micro-batch."""
    inputs = (batch.tokens, batch.labels, batch.loss_mask, batch.padding_mask)
    if batch.encoder_tokens is None:
        return model.losses(*inputs)
    return model.losses(batch.encoder_tokens, batch.encoder_mask, *inputs)


def reference_step(config: RunConfig, weights=skewed) -> tuple[float, dict[str, Tensor]]:
    """(training loss, what every micro-batch adds to each gradient: [micro-batches, *shape]) of one step.

    The reference computes in float64, free of rounding.
    """
    from altup_moe.model.reference.gpt import StepTotals

    model, count = reference_model(config, weights).double(), micro_batch_count(config)
    batches = [batch_of(config, index) for index in range(count)]
    losses = [reference_losses(model, batch) for batch in batches]
    shares = [one.share(StepTotals.of(losses)) for one in losses]
    added = [torch.autograd.grad(share, list(model.parameters()), materialize_grads=True) for share in shares]
    total = sum(float(share) for share in shares)
    names = [name for name, _ in model.named_parameters()]
    return total, {name: torch.stack(terms) for name, terms in zip(names, zip(*added, strict=True), strict=True)}


def longer_batch_of(config: RunConfig, index: int) -> Batch:
    """`batch_of` the run whose samples are half as long, with padding behind every sample."""
    half = replace(config.model, seq_length=config.model.seq_length // 2)
    if config.model.arch == "t5":
        half = replace(half, decoder_seq_length=config.model.decoder_length // 2)
    short = batch_of(replace(config, model=half), index)
    pad = {"padding_mask": True}
    return Batch(**{n: F.pad(t, (0, t.shape[1]), value=pad.get(n, 0)) for n, t in short.tensors.items()})


def layout_step(config: RunConfig, weights=skewed, make=batch_of) -> tuple[float, list[tuple[str, tuple, np.ndarray]]]:
    """On a rank: (training loss, [(global name, slice, gradient of the slice)]) after one step's reduction."""
    with topology(config.parallel) as topo:
        chunks = build_model(config, topo, weights)
        build_optimizer(chunks, config)
        for chunk in chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        batches = []
        for index in range(topo.data_rank, micro_batch_count(config), topo.data_size):
            batches.append(make(config, index))
        begin_step(chunks, batches, config, topo)
        lm_sum, tokens = run_schedule(chunks, batches, config, topo).tolist()
        routing = summarise_routing(chunks, config, topo)
        loss = lm_sum / tokens + (routing.aux_loss + routing.z_loss if routing else 0.0)
        if config.parallel.distributed_optimizer:
            _gather_shards(chunks)
        gradients = [
            (piece.name, piece.global_slice, entry.tensor.main_grad[piece.local_index].numpy())
            for entry in named_tensors(list(chunks), config, topo)
            if entry.tensor.requires_grad
            for piece in entry.pieces
        ]
        return loss, gradients


def _gather_shards(chunks) -> None:
    """Under the distributed optimizer each data rank holds a shard of the reduced gradients: put them together."""
    for chunk in chunks:
        for group in chunk.bucket_groups + chunk.expert_parallel_bucket_groups:
            ranks = group.intra_distributed_optimizer_instance_group
            for bucket in group.buckets:
                shard = bucket.grad_data.chunk(ranks.size())[ranks.rank()].clone()
                torch.distributed.all_gather_into_tensor(bucket.grad_data, shard, group=ranks)


def worst_difference(expected: dict[str, Tensor], ranks: list) -> tuple[float, str]:
    """Largest relative difference from `reference_step`'s gradients, and where it is.

    Differences are L2 norms over a slice, relative to what the micro-batches add (the root of the sum of their squares,
    as large as their sum where they are independent): float32 rounds these terms. Where they nearly cancel, as those of
    a single coefficient now and then do, the sum's own norm would tell how well, and that differs between processors.

    Every slice of every rank is compared, replicas included, and together they must cover every parameter.
    """
    worst, where, seen = 0.0, "", {name: torch.zeros(g.shape[1:], dtype=torch.bool) for name, g in expected.items()}
    for rank, (_, gradients) in enumerate(ranks):
        for name, tensor_slice, got in gradients:
            index = tuple(slice(a, b) for a, b in tensor_slice)
            seen[name][index] = True
            terms = expected[name][:, *index]
            scale = max(terms.norm().item(), 1e-3 * expected[name].norm().item(), 1e-12)
            difference = (torch.from_numpy(got) - terms.sum(0)).norm().item() / scale
            if difference > worst:
                worst, where = difference, f"{name} {tensor_slice} on rank {rank}"
    missing = [name for name, mask in seen.items() if not mask.all()]
    assert not missing, f"no rank holds {missing}"
    return worst, where


def layout_step_without(config: RunConfig, reduction: str):
    """`layout_step` with one of the gradient reductions taken out of this rank."""
    from megatron.core.distributed import DistributedDataParallel

    import altup_moe.model.build as build

    # The package's attribute of this name is the function; the module is only in sys.modules.
    finalize = sys.modules["megatron.core.distributed.finalize_model_grads"]
    if "norms" in reduction:
        summed = finalize._allreduce_non_tensor_model_parallel_grads
        finalize._allreduce_non_tensor_model_parallel_grads = _but_for_heads(summed)
        return layout_step(config)
    nothing = {
        "data-parallel gradients": (DistributedDataParallel, "finish_grad_sync"),
        "sequence-parallel gradients": (finalize, "_allreduce_non_tensor_model_parallel_grads"),
        "expert gradients over tensor ranks": (build, "mark_expert_parameters"),
        "tied embedding over stages": (finalize, "_allreduce_word_embedding_grads"),
    }
    # Not marking experts is a fault on megatron-core 0.16.1 alone; marking them as dense is one on every version.
    instead = _mark_experts_dense if "expert" in reduction else lambda *args, **kwargs: None
    setattr(*nothing[reduction], instead)
    return layout_step(config)


def _but_for_heads(reduction):
    """The reduction over tensor ranks, undone for the norms of queries and keys."""

    def reduce(model, *args, **kwargs):
        parameters = [
            p for chunk in model for name, p in chunk.named_parameters() if "q_layer" in name or "k_layer" in name
        ]
        kept = [p.main_grad.clone() for p in parameters]
        reduction(model, *args, **kwargs)
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.main_grad.copy_(gradient)

    return reduce


def _mark_experts_dense(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if ".experts." in name:
            parameter.allreduce = True  # type: ignore[attr-defined]
