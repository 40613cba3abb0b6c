"""Collectives for control flow: flags, messages and failures that all ranks must agree on. No pickle, JSON only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from altup_moe.device.on_device import on_device

Problem = TypeVar("Problem")


def any_rank(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is set on any rank. Collective."""
    if dist.get_world_size() == 1:
        return [bool(flag) for flag in flags]
    told = on_device([float(flag) for flag in flags], device, torch.float32)
    dist.all_reduce(told, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]


def gather_json(message: Any, device: torch.device) -> list[Any]:
    """Gather one JSON-serialisable message from every rank; returns them by rank. Collective, and a barrier."""
    data = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8).to(device)
    gathered = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, on_device([data.numel()], device, torch.int64))
    sizes = torch.cat(gathered).tolist()
    longest = max(sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: data.numel()] = data
    messages = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(messages, padded)
    told = torch.stack(messages).cpu().numpy()
    return [json.loads(bytes(message[:size])) for message, size in zip(told, sizes, strict=True)]


def first_problem(problem: Problem | None, device: torch.device) -> Problem | None:
    """The problem (JSON-serialisable) of the lowest rank that has one; None if no rank has one. Collective.

    Every rank gets the same result.
    """
    return next((found for found in gather_json(problem, device) if found is not None), None)
