"""This machine as a cluster file: products, memory, and gloo between two processes. The one part that runs torch."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from altup_moe.plan.cluster import Cluster


def _median_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    work()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _product_flops(dtype_name: str, size: int) -> float:
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype_name))
    return 2 * size**3 / _median_seconds(lambda: a @ a)


def _copy_rate(megabytes: int) -> float:
    import torch

    a = torch.zeros(megabytes * 2**20, dtype=torch.uint8)
    b = torch.empty_like(a)
    # Read once, written once.
    return 2 * a.numel() / _median_seconds(lambda: b.copy_(a))


def _gloo_rank(rank: int, store: str, out: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    small, large = torch.zeros(1), torch.zeros(2**22)
    seconds = [_median_seconds(lambda t=t: dist.all_reduce(t), 15) for t in (small, large)]  # type: ignore[misc]
    if rank == 0:
        # Of two ranks, each sends as many bytes as it hands in.
        rate = large.numel() * 4 / (seconds[1] - seconds[0])
        Path(out).write_text(f"{rate} {seconds[0]}", encoding="utf-8")
    dist.destroy_process_group()


def _gloo() -> tuple[float, float]:
    """(bytes a second, seconds of a call) of an all-reduce between two processes."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as directory:
        store, out = str(Path(directory) / "store"), str(Path(directory) / "out")
        mp.spawn(_gloo_rank, (store, out), nprocs=2)
        rate, latency = map(float, Path(out).read_text(encoding="utf-8").split())
    return rate, latency


def measure(size: int = 1024, megabytes: int = 256) -> Cluster:
    """Measure with one thread a process, as ranks run. Every process counts as a GPU, all cores as a node."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fp32, bf16, copied = _product_flops("float32", size), _product_flops("bfloat16", size), _copy_rate(megabytes)
    finally:
        torch.set_num_threads(threads)
    rate, latency = _gloo()
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / cores
    return Cluster(
        name="this machine",
        gpus_per_node=cores,
        peak_tflops_bf16=bf16 / 1e12,
        peak_tflops_fp32=fp32 / 1e12,
        efficiency=1.0,
        memory_gib=memory / 2**30,
        memory_gb_per_s=copied / 1e9,
        node_gb_per_s=rate / 1e9,
        node_latency_us=latency * 1e6,
        network_gb_per_s=rate / 1e9,
        network_latency_us=latency * 1e6,
    )


def as_yaml(cluster: Cluster) -> str:
    """The file's text; numbers with four figures."""
    lines = ["# Measured by tools/plan.py measure: medians, one thread a process; gloo between two processes."]
    for key, value in vars(cluster).items():
        if key != "name":
            lines.append(f"{key}: {value if isinstance(value, int) else float(f'{value:.4g}')}")
    return "\n".join(lines) + "\n"
