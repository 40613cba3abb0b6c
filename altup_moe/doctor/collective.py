"""An all-reduce and an all-to-all between two processes of this machine, and how fast they are."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from altup_moe.parallel.start_ranks import RankError, on_ranks, write_result

NUMBERS = 1 << 22  # 16 MiB of fp32
REPEATS = 3
SECONDS = 20.0
"""Time that both ranks together may take, torch's import included."""
MODULE = "altup_moe.doctor.collective"


def run_collectives(
    backend: str, port: int, interface: str | None, seconds: float = SECONDS, module: str = MODULE
) -> dict[str, float] | str:
    """Run two ranks; whatever happens, none is left.

    Args:
        backend: gloo or nccl (a GPU for each rank).
        port: a free port of the loopback, where the ranks meet.
        interface: GLOO_SOCKET_IFNAME where the user has not set it; None leaves it to gloo.
    Returns:
        Bytes a second by collective, or what went wrong in one line.
    """
    environment = {"TORCH_CPP_LOG_LEVEL": "ERROR", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", interface)
    try:
        speeds, _ = on_ranks(2, module, [backend, str(seconds)], timeout=seconds, environment=environment)
    except RankError as error:
        return str(error).removeprefix(f"{module}: ")
    return {str(name): float(speed) for name, speed in speeds.items()}


def collective_speeds(backend: str) -> dict[str, float]:
    """In each rank: check both collectives' results, then time them. Bytes a second that a rank hands in.

    Raises:
        RuntimeError: a result is wrong.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", dist.get_rank()) if backend == "nccl" else torch.device("cpu")
    x = torch.full((NUMBERS,), dist.get_rank() + 1.0, device=device)
    dist.all_reduce(x)
    halves = torch.empty_like(x)
    dist.all_to_all_single(halves, torch.full_like(x, dist.get_rank() + 1.0))
    if not bool((x == 3).all()):
        raise RuntimeError("the sum over two ranks is wrong")
    if not bool((halves[: NUMBERS // 2] == 1).all() and (halves[NUMBERS // 2 :] == 2).all()):
        raise RuntimeError("the all-to-all between two ranks is wrong")
    work: dict[str, Callable[[], Any]] = {
        "all-reduce": lambda: dist.all_reduce(x),
        "all-to-all": lambda: dist.all_to_all_single(halves, x),
    }
    return {name: x.nbytes / _seconds(run, device) for name, run in work.items()}


def _seconds(run: Callable[[], Any], device: Any) -> float:
    """Seconds of one call, the mean of some after one more."""
    import torch
    import torch.distributed as dist

    run()
    dist.barrier()
    begin = time.monotonic()
    for _ in range(REPEATS):
        run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()
    return (time.monotonic() - begin) / REPEATS


def main(backend: str, seconds: str, directory: str) -> None:
    """One rank: join the other, measure, and write the speeds."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=timedelta(seconds=float(seconds)))
    write_result(directory, collective_speeds(backend))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
