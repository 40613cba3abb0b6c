"""Ids that are no tokens, found before a model sees them: a vocabulary that is cut over ranks would take them for
tokens of other ranks, and count their labels as predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from altup_moe.config import DataError
from altup_moe.data.windows import EpochWindows
from altup_moe.parallel.control_collectives import first_problem
from altup_moe.parallel.topology import Topology
from altup_moe.train.batches import Batch, SampleDataset


@dataclass(frozen=True)
class BadId:
    """An id outside the vocabulary, where it stands in a rank's micro-batches. ``what``: token, label, ..."""

    micro_batch: int
    row: int
    position: int
    what: str
    value: int

    @property
    def problem(self) -> str:
        """In words, without the vocabulary."""
        return f"{self.what} {self.position} is {self.value}"


class BadIds(Exception):
    """Some rank's micro-batches hold an id that is no token. ``found``: the first one of this rank, if it has any."""

    def __init__(self, found: BadId | None) -> None:
        super().__init__("a token id is outside the vocabulary")
        self.found = found


def bad_id(batches: Sequence[Batch], vocab_size: int) -> BadId | None:
    """The first id outside 0..vocab_size-1: of tokens, an encoder's too, and of labels that count."""
    for number, batch in enumerate(batches):
        for what, ids in (("token", batch.tokens), ("label", batch.labels), ("encoder token", batch.encoder_tokens)):
            if ids is None:
                continue
            low, high = ids.aminmax()
            if low >= 0 and high < vocab_size:
                continue
            outside = (ids < 0) | (ids >= vocab_size)
            if what == "label":
                outside &= batch.loss_mask != 0
            if bool(outside.any()):
                row, position = outside.nonzero()[0].tolist()
                return BadId(number, row, position, what, int(ids[row, position]))
    return None


def named(
    error: BadIds, dataset: SampleDataset | None, start: int, size: int, vocab_size: int, topology: Topology
) -> DataError:
    """The error with the sample, and with the file and the byte offset where these are known. Collective.

    Args:
        dataset: what the micro-batches were cut from, from sample `start` on; None if they are the caller's own.
        size: samples of a micro-batch.
    """
    found = error.found
    own: tuple[str, str, int | None] | None = None
    if found is not None:
        where, offset = f"micro-batch {found.micro_batch}, row {found.row}", None
        problem = f"{found.problem}; ids of model.vocab_size {vocab_size} are 0 to {vocab_size - 1}"
        if dataset is not None:
            stride = size * topology.data_size
            number = start + topology.data_rank * size + found.micro_batch * stride + found.row
            where = f"sample {number}"
            if place := in_file(dataset, number, vocab_size):
                where, offset, value = place
                known = f"token id {value} is outside the vocabulary of {vocab_size}"
                problem = f"{known} (sample {number}, {found.problem})"
        own = where, problem, offset
    told = first_problem(own, topology.device)
    assert told is not None
    return DataError(*told)


def in_file(dataset: Any, number: int, vocab_size: int) -> tuple[str, int, int] | None:
    """(.bin, byte offset, id) of the first id of a sample's window that is no token; None if no file is known."""
    order = getattr(dataset, "order", None)
    if order is not None:
        component, number = order[number]
        number = number % len(dataset.parts[component]) if dataset.rewind else number
        dataset = dataset.parts[component]
    while not isinstance(dataset, EpochWindows):
        dataset = getattr(dataset, "windows", None) or getattr(dataset, "samples", None)
        if dataset is None:
            return None
    for first, ids in dataset.pieces(number):
        outside = (ids < 0) | (ids >= vocab_size)
        if outside.any():
            at = int(np.argmax(outside))
            return str(dataset.file), (first + at) * ids.dtype.itemsize, int(ids[at])
    return None
