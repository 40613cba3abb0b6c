"""One training step and one validation through Megatron's pipeline schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from altup_moe.altup.shape import sent_blocks
from altup_moe.config import RunConfig
from altup_moe.device.on_device import on_device
from altup_moe.parallel.topology import Topology
from altup_moe.parallel.watchdog.notes import progress
from altup_moe.train.batches import Batch, SampleDataset, micro_batches
from altup_moe.train.engine import Engine
from altup_moe.train.guards.norms import agreed_norm, overflowed
from altup_moe.train.guards.token_ids import BadIds, bad_id, named
from altup_moe.train.routing import RoutingSummary, begin_step, routing_sums, step_taken, summary_of


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, the same on every rank.

    Losses in nats: the mean over the step's labels (lm), and the routers' with their coefficients.
    """

    lm_loss: float
    grad_norm: float
    skipped: bool
    routing: RoutingSummary | None
    reason: str = ""
    """Why it was skipped."""
    spike: bool = False
    """Whether it was skipped as a spike, not for numbers that are none."""

    @property
    def loss(self) -> float:
        """What was minimised: language-model loss plus the routers' weighted losses."""
        return self.lm_loss + (self.routing.aux_loss + self.routing.z_loss if self.routing else 0.0)


@dataclass(frozen=True)
class Validation:
    """Mean loss in nats per token, and bits per byte of UTF-8 text, over `tokens` labels."""

    loss: float
    bits_per_byte: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss), per token."""
        return math.exp(min(self.loss, 700.0))


def _loss_func(
    batch: Batch, weight: Tensor, byte_lengths: Tensor | None, losses_BS: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Megatron's contract: (sum to differentiate, what to divide it by, what to report)."""
    mask = batch.loss_mask.to(losses_BS.dtype)
    total, tokens = (losses_BS * mask).sum(), mask.sum()
    sums = [total.detach(), tokens]
    if byte_lengths is not None:
        sums.append((byte_lengths[batch.labels] * mask).sum())
    nothing = torch.ones((), dtype=torch.int, device=total.device)
    return total * weight, nothing, torch.stack([s.double() for s in sums])


def _forward_step(
    weight: Tensor, byte_lengths: Tensor | None, iterator: Iterator[Batch], model: Any
) -> tuple[Tensor, Callable]:
    progress()
    batch = next(iterator)
    return model(batch.tokens, batch.labels, **batch.model_inputs), partial(_loss_func, batch, weight, byte_lengths)


def _label_weight(batches: list[Batch], vocab_size: int, topology: Topology) -> Tensor:
    """The weight of a label's loss with which the step's gradient is that of the sum over all its labels divided by
    their number, whatever micro-batch or rank holds them.

    Megatron's schedule divides a micro-batch's loss by the number of micro-batches, and gradients are averaged over
    data and context ranks. (Its own way, `calculate_per_token_loss`, scales the routers' losses as well.)

    Raises:
        BadIds: on every rank, if one of them has an id outside the vocabulary. (A file may be damaged on one node.)
    """
    labels = float(torch.stack([batch.loss_mask.sum(dtype=torch.float64) for batch in batches]).sum())
    bad = bad_id(batches, vocab_size)
    # Ranks of one data rank have the same micro-batches: one of them counts.
    counts = (topology.tensor_rank, topology.pipeline_rank, dist.get_rank(topology.groups.cp)) == (0, 0, 0)
    told = on_device([labels * counts, float(bad is not None)], topology.device)
    dist.all_reduce(told)
    # A rank alone knows without asking its device.
    if bad is not None if topology.world_size == 1 else bool(told[1]):
        raise BadIds(bad)
    averaged = len(batches) * topology.data_size * topology.context_size
    return (averaged / told[0].clamp(min=1.0)).float()


def run_schedule(
    chunks: list[Any],
    batches: list[Batch],
    config: RunConfig,
    topology: Topology,
    forward_only: bool = False,
    byte_lengths: Tensor | None = None,
) -> Tensor:
    """Forward (and backward) of this rank's micro-batches; gradients are those of the mean over the step's labels.

    Returns:
        Sums over the micro-batches of all ranks, float64: loss, tokens, and bytes if asked for.
    Raises:
        BadIds: on all ranks, before the model sees it: an id that is no token.
    """
    weight = _label_weight(batches, config.model.vocab_size, topology)
    if forward_only:
        weight = torch.ones_like(weight)
    batches = [batch.on_context_rank(topology.context_size).to(topology.device) for batch in batches]
    # Every chunk of an interleaved schedule reads the same micro-batches in its own time.
    iterators = [iter(batches) for _ in chunks]
    width = sent_blocks(config.altup.width, config.altup.variant, config.altup.correct)
    reported = get_forward_backward_func()(
        forward_step_func=partial(_forward_step, weight, byte_lengths),
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=len(batches),
        # Blocks follow each other along the sequence: all that a schedule has to know of the wide stream.
        seq_length=config.model.seq_length * width,
        micro_batch_size=config.train.micro_batch_size,
        forward_only=forward_only,
    )
    sums = torch.zeros(2 if byte_lengths is None else 3, dtype=torch.float64, device=topology.device)
    for value in reported:
        sums += value
    # Tensor ranks of the last stage all report the same; other stages report nothing.
    dist.all_reduce(sums)
    return sums / topology.tensor_size


def train_step(
    engine: Engine,
    batches: list[Batch],
    config: RunConfig,
    topology: Topology,
    before_update: Callable[[], None] = lambda: None,
    spike: Callable[[float, float], str | None] = lambda loss, norm: None,
) -> StepResult:
    """Forward, backward, reduce, clip, update.

    A step with a non-finite loss or an overflowing gradient norm, or one that is a spike, is skipped: weights,
    optimizer state, expert biases and loads stay. Its samples count as consumed, it has its place in the learning
    rate's schedule, and dropout has drawn for it.

    Args:
        before_update: called once nothing but the update is left: whoever still reads the weights comes to an end.
        spike: (lm loss, gradient norm) -> why the step is a spike; None if it is not.
    """
    chunks = engine.chunks
    for chunk in chunks:
        chunk.train()
    engine.zero_grad()
    begin_step(chunks, batches, config, topology)
    sums = run_schedule(chunks, batches, config, topology)
    table, own_norm = routing_sums(chunks, config, topology), engine.gradient_norm()
    loss, tokens, own, grad_norm, routes = _read(sums, own_norm, agreed_norm(own_norm), table)
    routing = None if routes is None else summary_of(routes, config)
    lm_loss = loss / max(tokens, 1.0)
    if not math.isfinite(lm_loss):
        return StepResult(lm_loss, math.nan, True, routing, f"its loss is {lm_loss}")
    if overflowed(grad_norm):
        return StepResult(lm_loss, math.nan, True, routing, f"its gradient norm is {grad_norm:.3g}")
    if reason := spike(lm_loss, grad_norm):
        return StepResult(lm_loss, grad_norm, True, routing, reason, spike=True)
    before_update()
    engine.step(own)
    step_taken(chunks, routing, config)
    return StepResult(lm_loss, grad_norm, False, routing)


def _read(
    sums: Tensor, own: Tensor, agreed: Tensor, table: Tensor | None
) -> tuple[float, float, float, float, Tensor | None]:
    """(loss, tokens, own gradient norm, the agreed one, the table) on the host.

    One copy, the only one of a step on one rank: the host waits here until the device has done all but the update.
    """
    parts = [sums, own.double()[None], agreed[None]] + ([] if table is None else [table.flatten()])
    told = torch.cat(parts).cpu()
    loss, tokens, own_norm, agreed_norm = told[:4].tolist()
    return loss, tokens, own_norm, agreed_norm, None if table is None else told[4:].view(table.shape)


@torch.no_grad()
def validate(
    chunks: list[Any],
    dataset: SampleDataset,
    count: int,
    byte_lengths: Tensor,
    config: RunConfig,
    topology: Topology,
) -> Validation:
    """Loss and bits per byte of the first `count` samples. ``byte_lengths`` [V]: UTF-8 bytes of each token id."""
    for chunk in chunks:
        chunk.eval()
    batches = list(
        micro_batches(
            dataset,
            0,
            count,
            config.train.micro_batch_size,
            topology.data_rank,
            topology.data_size,
        )
    )
    # An interleaved schedule takes micro-batches in groups of the pipeline's size; empty ones fill the last group.
    while topology.virtual_size > 1 and len(batches) % topology.pipeline_size:
        last = batches[-1]
        batches.append(replace(last, loss_mask=torch.zeros_like(last.loss_mask)))
    lengths = byte_lengths.to(topology.device)
    try:
        loss, tokens, text_bytes = run_schedule(chunks, batches, config, topology, True, lengths).tolist()
    except BadIds as error:
        size, vocab_size = config.train.micro_batch_size, config.model.vocab_size
        raise named(error, dataset, 0, size, vocab_size, topology) from None
    return Validation(loss / tokens, loss / math.log(2) / max(text_bytes, 1.0), round(tokens))
