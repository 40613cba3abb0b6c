"""Send files of one rank to another through a gloo group that nothing else uses meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from altup_moe.checkpoint.memory_nodes import Transfer

CHUNK_BYTES = 1 << 24
"""Bytes of a message; the receiver holds one."""
MISSING = -1
"""Sent in the place of a size: the sender, which raises, does not have the file; the receiver goes on without it."""


def exchange(transfers: Iterable[Transfer], directory: Path, rank: int, group: Any) -> None:
    """Send and receive this rank's part of `transfers`, in their order. Every rank of the group's transfers calls it.

    A file is complete or not there: it is received beside its name, then renamed. A rank that cannot write reads on,
    so that the sender does not wait for it.

    Raises:
        OSError: a file could not be read or written (the first one); all other files have been exchanged.
    """
    transfers = list(transfers)
    pending: list[tuple[Any, torch.Tensor]] = []
    problems: list[OSError] = []
    for one in transfers:
        if one.source == rank:
            try:
                pending += _send(directory / one.file, one.target, group)
            except OSError as error:
                problems.append(error)
                pending.append(_start(torch.tensor([MISSING]), one.target, group))
    for one in transfers:
        if one.target == rank:
            try:
                _receive(directory / one.file, one.source, group)
            except OSError as error:
                problems.append(error)
    for work, _ in pending:
        work.wait()
    if problems:
        raise problems[0]


def _start(tensor: torch.Tensor, target: int, group: Any) -> tuple[Any, torch.Tensor]:
    """A send under way, and the tensor, which has to live until it has ended."""
    return dist.isend(tensor, target, group=group), tensor


def _send(path: Path, target: int, group: Any) -> list[tuple[Any, torch.Tensor]]:
    size = path.stat().st_size
    # Mapped: the file is in memory already. Torch wants it writable.
    data = torch.from_numpy(np.memmap(path, np.uint8, "r+")) if size else torch.empty(0, dtype=torch.uint8)
    return [_start(part, target, group) for part in (torch.tensor([size]), *data.split(CHUNK_BYTES)) if part.numel()]


def _receive(path: Path, source: int, group: Any) -> None:
    told = torch.zeros(1, dtype=torch.int64)
    dist.recv(told, source, group=group)
    left = int(told)
    if left == MISSING:
        return
    temporary = path.with_name(f".{path.name}.incoming")
    chunk = torch.empty(min(left, CHUNK_BYTES), dtype=torch.uint8)
    problem: OSError | None = None
    try:
        descriptor: int | None = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        problem, descriptor = error, None
    try:
        while left:
            part = chunk[: min(left, CHUNK_BYTES)]
            dist.recv(part, source, group=group)
            left -= part.numel()
            if descriptor is not None and problem is None:
                problem = _written(descriptor, part.numpy().data)
        if problem is not None:
            raise problem
        os.replace(temporary, path)
    finally:
        if descriptor is not None:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _written(descriptor: int, data: memoryview) -> OSError | None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        return error
    return None
