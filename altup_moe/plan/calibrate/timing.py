"""Time functions with the processor's clock. The least of several measurements counts: other load only adds time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from altup_moe.plan.cpu_cost_model import ForwardBackward

WORKING_SET_BYTES = 2**23
"""Bytes of input that a measurement goes through. Few of them are still in the cache, as in a training step."""
SMALL, LARGE = 2**14, 2**17
"""Numbers in a tensor. The large one is that of a small model: 512 tokens of 256 features, half a MiB."""

PieceWithInputs = tuple[Callable[..., Tensor], list[Tensor]]
"""(function, its inputs)."""
PieceFactory = Callable[[int], PieceWithInputs]
"""Number of elements -> a piece on inputs of that size."""


def input_sets(numbers: int) -> int:
    """How many fp32 tensors of `numbers` elements fill the working set; at least 2."""
    return max(2, WORKING_SET_BYTES // (4 * numbers))


def call_seconds(function: Callable[..., object], *args: Any, repeats: int = 7) -> float:
    """Seconds of one call, the least of `repeats` after a warm-up call."""
    function(*args)
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        function(*args)
        taken.append(time.process_time() - begin)
    return min(taken)


def forward_backward_seconds(pieces: list[PieceWithInputs], repeats: int = 5) -> ForwardBackward:
    """Seconds of one piece: all pieces run forward, then all run backward in reverse order."""
    for _, inputs in pieces:
        for tensor in inputs:
            tensor.requires_grad_(tensor.is_floating_point())
    forward, backward = [], []
    for _ in range(repeats + 1):
        begin = time.process_time()
        outs = [function(*inputs) for function, inputs in pieces]
        middle = time.process_time()
        for out, (_, inputs) in zip(reversed(outs), reversed(pieces), strict=True):
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            torch.autograd.grad(out, wanted, out.detach())
        forward.append(middle - begin)
        backward.append(time.process_time() - middle)
    return min(forward[1:]) / len(pieces), min(backward[1:]) / len(pieces)


def nanoseconds_per_number(piece: PieceFactory, small: int = SMALL, large: int = LARGE) -> ForwardBackward:
    """Nanoseconds of each further number: the difference of two sizes, without the fixed cost of a call."""
    few, many = (forward_backward_seconds([piece(n) for _ in range(input_sets(n))]) for n in (small, large))
    forward, backward = (max(1e-4, 1e9 * (b - a) / (large - small)) for a, b in zip(few, many, strict=True))
    return forward, backward
