"""Rates of matrix products and of large copies on one core."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from altup_moe.plan.calibrate.timing import WORKING_SET_BYTES, call_seconds
from altup_moe.plan.cpu_cost_model import SIZES, ForwardBackward


def product_seconds(rows: int, inner: int, outer: int) -> ForwardBackward:
    """Seconds of x W^T with x [rows, inner] and W [outer, inner], and of both products of its gradient."""
    count = max(1, min(32, WORKING_SET_BYTES // (4 * max(rows * inner, inner * outer, rows * outer))))
    sets = [(torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)) for _ in range(count)]
    repeats = 5 if rows * inner * outer < 2**27 else 3
    forward = call_seconds(lambda: [x @ w.t() for x, w, _ in sets], repeats=repeats)
    backward = call_seconds(lambda: [(g @ w, g.t() @ x) for x, w, g in sets], repeats=repeats)
    return forward / count, backward / count


def product_gflops(sizes: Sequence[int] = SIZES) -> tuple[list[float], list[float]]:
    """The tables `CpuCostModel.forward_gflops` and `backward_gflops`, 10^9 operations a second."""
    forward, backward = [], []
    for rows, inner, outer in itertools.product(sizes, repeat=3):
        forward_seconds, backward_seconds = product_seconds(rows, inner, outer)
        forward.append(2e-9 * rows * inner * outer / forward_seconds)
        backward.append(4e-9 * rows * inner * outer / backward_seconds)
    return forward, backward


def large_rates() -> tuple[float, float, float]:
    """(operations a second of a large fp32 product, of a large bf16 product, bytes a second of a large copy)."""
    a, b = torch.randn(1024, 1024), torch.randn(256, 256).to(torch.bfloat16)
    source = torch.zeros(2**25)
    target = torch.empty_like(source)
    fp32, bf16 = (2 * len(x) ** 3 / call_seconds(torch.mm, x, x) for x in (a, b))
    # A copy reads four bytes a number and writes four.
    return fp32, bf16, 2 * 4 * len(source) / call_seconds(target.copy_, source)


def sample_seconds() -> float:
    """Seconds of a few products, activations and norms: the current speed of this core."""
    sets = [(torch.randn(512, 256), torch.randn(704, 256)) for _ in range(8)]
    return call_seconds(lambda: [(F.silu(x @ w.t()), F.rms_norm(x, (256,))) for x, w in sets], repeats=15)
