"""Micro-batches, cut so that every layout sees the same ones.

Micro-batch g of a step holds samples [g * size, (g + 1) * size), and data-parallel rank r of n takes g = r, r + n, ...
What depends on a whole micro-batch (expert capacity, auxiliary loss) is then the same everywhere, and a run goes on
exactly from its number of consumed samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from altup_moe.parallel.compat import batch_on_context_rank


class SampleDataset(Protocol):
    """Samples by number, each a mapping with `tokens`, `labels` and `loss_mask` of shape [S].

    Those that may be padded have `padding_mask` of [S] as well. For an encoder-decoder these are the decoder's, and
    with them come `encoder_tokens` and `encoder_mask` of [T].
    """

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        """One sample."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: tokens, labels (the next tokens) and the mask of labels that count, all [B, S].

    ``padding_mask``: bool, True on padding, whose outputs nobody reads; None has none. An encoder-decoder's has an
    encoder's tokens and their mask as well (1 on tokens, 0 on padding), both [B, T].
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    padding_mask: Tensor | None = None
    encoder_tokens: Tensor | None = None
    encoder_mask: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device. A copy from pinned memory does not hold up the host."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()})

    def pinned(self) -> Batch:
        """The same in memory that a GPU reads by itself."""
        return Batch(**{name: tensor.pin_memory() for name, tensor in self.tensors.items()})

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """What a model takes beside tokens and labels, by name."""
        return {name: tensor for name, tensor in self.tensors.items() if name not in ("tokens", "labels", "loss_mask")}

    def tokens_routed(self, in_encoder: bool, stride: int) -> int:
        """Tokens that an MoE layer routes, padding left out: all of a stack's, or every stride-th."""
        tokens, padding = self.tokens, self.padding_mask
        if in_encoder:
            assert self.encoder_tokens is not None
            assert self.encoder_mask is not None
            tokens, padding = self.encoder_tokens, self.encoder_mask == 0
        return tokens[:, ::stride].numel() - (0 if padding is None else int(padding[:, ::stride].sum()))

    def on_context_rank(self, context_size: int) -> Batch:
        """This context-parallel rank's part of the sequence (Megatron's zigzag), for each [B, S / context_size]."""
        if context_size == 1:
            return self
        return Batch(**batch_on_context_rank(self.tensors))


def _collate(dataset: SampleDataset, numbers: range, end: int) -> Batch:
    """Samples by number; those past `end` repeat the last one with nothing to count."""
    rows = [dataset[min(n, end - 1)] for n in numbers]
    counts = torch.tensor([[1.0 if n < end else 0.0] for n in numbers])
    if any("padding_mask" in row for row in rows):
        # In a mixture some samples are never padded.
        rows = [{"padding_mask": torch.zeros_like(row["tokens"], dtype=torch.bool), **row} for row in rows]
    names = [field.name for field in fields(Batch) if field.name in rows[0]]
    stacked = {name: torch.stack([row[name] for row in rows]) for name in names}
    return Batch(**{**stacked, "loss_mask": stacked["loss_mask"] * counts})


def micro_batches(
    dataset: SampleDataset, start: int, count: int, size: int, data_rank: int, data_size: int
) -> Iterator[Batch]:
    """This data-parallel rank's micro-batches of samples [start, start + count).

    Every rank gets the same number of micro-batches: past the end they are masked out.
    """
    stride = size * data_size
    for first in range(start + data_rank * size, start + (count + stride - 1) // stride * stride, stride):
        yield _collate(dataset, range(first, first + size), start + count)
