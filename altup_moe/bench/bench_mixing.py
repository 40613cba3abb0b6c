"""`altup-moe bench mixing`: the one pass over the wide stream beside a plain copy of the same bytes and beside others.

All contenders take turns on the same tensors, so that a change of the machine's speed meets them all; figures are
ratios of medians. N is the numbers a block holds, C = R = K + 1 the rows that a pass reads and writes.

Copy bound, in blocks of N: the forward pass moves C + R (x and y in; the next stream and the next layer's axpy out),
the backward pass R + C + C (what arrived, what was saved; gradients out). The bound is the time in which torch's
`copy_` moves that many bytes, half of them read and half written, into memory that is already there. Others compute the
same next stream from the same (x, y), one block less: they do not prepare the next layer's input.

`dynamic`: the passes with a matrix for each token, to the same bound, and whole steps of manifold-constrained
hyper-connections that compute the matrices too, ours beside others (`dynamic_contenders`). Where there is a GPU they
run on it too, ours in Triton, over a copy on the GPU; else a line on stderr says that they do not.

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
from functools import partial

import torch

from altup_moe.bench.dynamic_contenders import dynamic_contenders
from altup_moe.bench.mixing_contenders import CPU, MixingContender, mixing_contenders
from altup_moe.bench.mixing_goals import MixingTiming, dynamic_goals, goals
from altup_moe.bench.mixing_rivals import HYPER_MISSING
from altup_moe.bench.options import MixingBench

MIXING_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_GPU = "no GPU here: altup.kernel triton is not measured"


def _medians(
    found: dict[str, MixingContender], repeats: int, finish: Callable[[], object]
) -> Iterator[tuple[str, float, float]]:
    """Yield (name, forward, both), medians in seconds; the first turn is not counted. ``finish`` waits for a device."""
    seconds: dict[tuple[str, str], list[float]] = {(name, part): [] for name in found for part in ("forward", "both")}
    for repeat in range(repeats + 1):
        for name, part in seconds:
            run = getattr(found[name], part)
            started = time.perf_counter()
            result = run()
            finish()
            taken = time.perf_counter() - started
            del result  # freeing is not timed
            if repeat:
                seconds[name, part].append(taken)
    for name in found:
        yield name, statistics.median(seconds[name, "forward"]), statistics.median(seconds[name, "both"])


def measure_mixing(bench: MixingBench) -> Iterator[MixingTiming]:
    """Time every contender in every setting: on the CPU and, those with a matrix for each token, on a GPU if there is
    one."""
    for threads in bench.threads:
        torch.set_num_threads(threads)
        yield from _settings(bench, threads, CPU)
    if bench.dynamic and torch.cuda.is_available():
        yield from _settings(bench, 0, torch.device("cuda"))


def _settings(bench: MixingBench, threads: int, device: torch.device) -> Iterator[MixingTiming]:
    finish = torch.cuda.synchronize if device.type == "cuda" else _nothing
    for width in bench.widths:
        for name in bench.dtypes:
            dtype = MIXING_DTYPES[name]
            for exponent in bench.exponents:
                if bench.dynamic:
                    found = dynamic_contenders(bench, width, exponent, dtype, device)
                else:
                    found = mixing_contenders(bench, width, exponent, dtype)
                medians = list(_medians(found, bench.repeats, finish))
                _, copy_forward, copy_both = medians[0]
                for contender, forward, both in medians:
                    times = 1e3 * forward, 1e3 * both, forward / copy_forward, both / copy_both
                    yield MixingTiming(width, exponent, name, threads, contender, *times, device.type)


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
        setting = f"{r.width:>2} {f'2^{r.exponent}':>5} {r.dtype:<5} {r.threads if r.device == 'cpu' else r.device:>7}"
        figures = f"{r.forward_ms:11.2f}{r.forward_ratio:8.2f}{r.both_ms:10.2f}{r.both_ratio:8.2f}"
        say(f"{setting}  {r.name:<28}{figures}")
    if bench.rivals and not any(row.name.startswith("hyper") for row in rows):
        print(HYPER_MISSING, file=sys.stderr)
    if bench.dynamic and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
    reached = dynamic_goals(rows) if bench.dynamic else goals(rows)
    for goal in reached:
        say(f"{'met   ' if goal.met else 'not met'} {goal.figure:6.2f}  {goal.text}")
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "memory": memory}
        results = {"rows": [vars(r) for r in rows], "goals": [vars(g) for g in reached]}
        print(json.dumps({"bench": vars(bench), **machine, **results}))
    return 0


def _nothing(*_: object) -> None:
    pass
