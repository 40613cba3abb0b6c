"""`altup-moe bench mixing`: the one pass over the wide stream beside a plain copy of the same bytes and beside others.

All contenders take turns on the same tensors, so that a change of the machine's speed meets them all; figures are
ratios of medians. N is the numbers a block holds, C = R = K + 1 the rows that a pass reads and writes.

Copy bound, in blocks of N: the forward pass moves C + R (x and y in; the next stream and the next layer's axpy out),
the backward pass R + C + C (what arrived, what was saved; gradients out). The bound is the time in which torch's
`copy_` moves that many bytes, half of them read and half written, into memory that is already there. Others compute the
same next stream from the same (x, y), one block less: they do not prepare the next layer's input.

Memory: by glibc's default a result above 32 MiB is mapped afresh for every call and cleared page by page, which takes
longer than the arithmetic. `memory=kept` tells glibc to keep what was freed, for all contenders alike.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.bench.mixing_rivals import GEMMA, HYPER_MISSING, LITERAL, Update, rivals
from altup_moe.bench.options import MixingBench

MIXING_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OUR_KERNELS = ("torch", "compile")
GOAL_WIDTH, GOAL_EXPONENT = 4, 21


@dataclass(frozen=True)
class MixingContender:
    """One implementation of the pass. `both` runs forward and backward."""

    forward: Callable[[], object]
    both: Callable[[], object]


@dataclass(frozen=True)
class MixingTiming:
    """Times of one contender in one setting: medians in ms, and their ratios to the copy bound of our pass."""

    width: int
    exponent: int
    dtype: str
    threads: int
    name: str
    forward_ms: float
    both_ms: float
    forward_ratio: float
    both_ratio: float


@dataclass(frozen=True)
class Goal:
    """A goal, the measured figure, and whether it is met."""

    text: str
    figure: float
    met: bool


def mixing_contenders(bench: MixingBench, width: int, exponent: int, dtype: torch.dtype) -> dict[str, MixingContender]:
    """All contenders of one setting on the same tensors, the copy first."""
    generator, n = torch.Generator().manual_seed(0), 2**exponent
    x_KN, y_N, d_RN = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((width, n), (n,), (width + 1, n))
    )
    w_RC = torch.randn(width + 1, width + 1, generator=generator)
    found = {"copy": _copy(width, n, dtype)}
    found |= {name: _ours(name, d_RN, x_KN, y_N, w_RC) for name in bench.kernels}
    if bench.rivals:
        shape = (1, n // bench.hidden_size, bench.hidden_size)
        x, y, d = x_KN.view(width, *shape), y_N.view(shape), d_RN[:width].view(width, *shape)
        for name, (update, parameters) in rivals(width, bench.hidden_size, dtype).items():
            found[name] = _by_autograd(update, parameters, x, y, d)
    return found


def _copy(width: int, n: int, dtype: torch.dtype) -> MixingContender:
    """A copy that moves 2 (K + 1) blocks forward and 3 (K + 1) backward."""
    blocks = width + 1
    source, target = torch.ones(3 * blocks * n // 2, dtype=dtype), torch.zeros(3 * blocks * n // 2, dtype=dtype)

    def forward() -> None:
        target[: blocks * n].copy_(source[: blocks * n])

    def both() -> None:
        forward()
        target.copy_(source)

    return MixingContender(forward, both)


def _ours(name: str, d_RN: Tensor, x_KN: Tensor, y_N: Tensor, w_RC: Tensor) -> MixingContender:
    k = kernel(name, x_KN.device)

    def both() -> object:
        return k.forward(x_KN, y_N, w_RC), k.backward(d_RN, x_KN, y_N, w_RC)

    return MixingContender(lambda: k.forward(x_KN, y_N, w_RC), both)


def _by_autograd(update: Update, parameters: list[Tensor], x: Tensor, y: Tensor, d: Tensor) -> MixingContender:
    x_leaf, y_leaf = x.detach().requires_grad_(), y.detach().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return update(x, y)

    def both() -> object:
        out = update(x_leaf, y_leaf)
        outputs, grads = (out, list(d)) if isinstance(out, list) else (out, d.view_as(out))
        return torch.autograd.grad(outputs, [x_leaf, y_leaf, *parameters], grads)

    return MixingContender(forward, both)


def _medians(found: dict[str, MixingContender], repeats: int) -> Iterator[tuple[str, float, float]]:
    """Yield (name, forward, both), medians in seconds; the first turn is not counted."""
    seconds: dict[tuple[str, str], list[float]] = {(name, part): [] for name in found for part in ("forward", "both")}
    for repeat in range(repeats + 1):
        for name, part in seconds:
            run = getattr(found[name], part)
            started = time.perf_counter()
            result = run()
            taken = time.perf_counter() - started
            del result  # freeing is not timed
            if repeat:
                seconds[name, part].append(taken)
    for name in found:
        yield name, statistics.median(seconds[name, "forward"]), statistics.median(seconds[name, "both"])


def measure_mixing(bench: MixingBench) -> Iterator[MixingTiming]:
    """Time every contender in every setting."""
    for threads in bench.threads:
        torch.set_num_threads(threads)
        for width in bench.widths:
            for dtype in bench.dtypes:
                for exponent in bench.exponents:
                    found = mixing_contenders(bench, width, exponent, MIXING_DTYPES[dtype])
                    medians = list(_medians(found, bench.repeats))
                    _, copy_forward, copy_both = medians[0]
                    for name, forward, both in medians:
                        ratios = forward / copy_forward, both / copy_both
                        yield MixingTiming(width, exponent, dtype, threads, name, 1e3 * forward, 1e3 * both, *ratios)


def goals(rows: list[MixingTiming]) -> list[Goal]:
    """Judge the goals at K = 4 and 2^21 numbers a block, for the fastest of our kernels in each setting."""
    found = []
    for dtype, threads in dict.fromkeys((row.dtype, row.threads) for row in rows):
        here = _at(rows, dtype, threads)
        ours = [here[name] for name in OUR_KERNELS if name in here]
        if not ours:
            continue
        best = min(ours, key=lambda row: row.both_ms)
        where = f"({best.name}, {dtype}, {threads} thread{'s' * (threads > 1)})"
        found.append(_at_most(f"forward <= 1.5 x copy {where}", best.forward_ratio, 1.5))
        found.append(_at_most(f"forward and backward <= 2.5 x copy {where}", best.both_ratio, 2.5))
        for rival, factor in ((GEMMA, 4.0), (LITERAL, 3.0)):
            if rival in here:
                forward, both = here[rival].forward_ms / best.forward_ms, here[rival].both_ms / best.both_ms
                for part, faster in (("forward", forward), ("forward and backward", both)):
                    found.append(Goal(f"{part} >= {factor:g} x faster than {rival} {where}", faster, faster >= factor))
    return found


def _at(rows: list[MixingTiming], dtype: str, threads: int) -> dict[str, MixingTiming]:
    setting = (GOAL_WIDTH, GOAL_EXPONENT, dtype, threads)
    return {r.name: r for r in rows if (r.width, r.exponent, r.dtype, r.threads) == setting}


def _at_most(text: str, figure: float, limit: float) -> Goal:
    return Goal(text, figure, figure <= limit)


def _keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory and reuse it; False if the C library is another."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def bench_mixing(bench: MixingBench) -> int:
    """Measure, print a table as it grows and the goals after it; or one JSON object."""
    kept = bench.memory == "kept" and _keep_freed_memory()
    memory = "freed memory kept" if kept else "the C library's default allocation"
    say = _nothing if bench.json else partial(print, flush=True)
    say(f"medians of {bench.repeats} interleaved turns, {memory}, width of a token {bench.hidden_size}")
    say(f"{'K':>2} {'N':>5} {'dtype':<5} threads  {'':<28}{'forward ms':>11}{'x copy':>8}{'both ms':>10}{'x copy':>8}")
    rows = []
    for r in measure_mixing(bench):
        rows.append(r)
        setting = f"{r.width:>2} {f'2^{r.exponent}':>5} {r.dtype:<5} {r.threads:>7}"
        figures = f"{r.forward_ms:11.2f}{r.forward_ratio:8.2f}{r.both_ms:10.2f}{r.both_ratio:8.2f}"
        say(f"{setting}  {r.name:<28}{figures}")
    if bench.rivals and not any(row.name.startswith("hyper") for row in rows):
        print(HYPER_MISSING, file=sys.stderr)
    reached = goals(rows)
    for goal in reached:
        say(f"{'met   ' if goal.met else 'not met'} {goal.figure:6.2f}  {goal.text}")
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "memory": memory}
        results = {"rows": [vars(r) for r in rows], "goals": [vars(g) for g in reached]}
        print(json.dumps({"bench": vars(bench), **machine, **results}))
    return 0


def _nothing(line: str) -> None:
    pass
