"""An all-reduce and an all-to-all between two processes of this machine, and how fast they are.

The parent starts this file as a script, once a rank: it imports torch and nothing of the package.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

NUMBERS = 1 << 22  # 16 MiB of fp32
REPEATS = 3
SECONDS = 20.0
"""Time that both ranks together may take, torch's import included."""


def run_collectives(
    backend: str, port: int, interface: str | None, seconds: float = SECONDS, script: Path = Path(__file__)
) -> dict[str, float] | str:
    """Two ranks as processes; whatever happens, none is left.

    Args:
        backend: gloo or nccl (a GPU for each rank).
        port: a free port of the loopback.
        interface: what gloo is told to take; None leaves it to gloo.
    Returns:
        Bytes a second by collective, or what went wrong in one line.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", "WORLD_SIZE": "2"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if interface is not None:
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    ranks = []
    with tempfile.TemporaryDirectory(prefix="altup-moe-") as directory:
        try:
            for rank in ("0", "1"):
                with (Path(directory) / rank).open("w") as errors:
                    ranks.append(
                        subprocess.Popen(
                            [sys.executable, "-P", str(script), backend, str(seconds)],
                            env={**env, "RANK": rank, "LOCAL_RANK": rank},
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE,
                            stderr=errors,
                            text=True,
                            start_new_session=True,
                        )
                    )
            return _outcome(ranks, time.monotonic() + seconds, Path(directory))
        finally:
            for process in ranks:
                process.kill()
                process.wait()
                if process.stdout:
                    process.stdout.close()


def _outcome(ranks: list[subprocess.Popen[str]], deadline: float, directory: Path) -> dict[str, float] | str:
    while any(process.poll() is None for process in ranks) and not any(process.poll() for process in ranks):
        if time.monotonic() > deadline:
            return "the two ranks did not finish in time"
        time.sleep(0.05)
    for rank, process in enumerate(ranks):
        if process.poll():
            lines = (directory / str(rank)).read_text(errors="replace").strip().splitlines()
            return f"rank {rank} ended with {process.returncode}: {lines[-1][:300] if lines else 'no message'}"
    told = ranks[0].stdout.read() if ranks[0].stdout else ""
    return {str(name): float(speed) for name, speed in json.loads(told).items()}


def measure(backend: str) -> dict[str, float]:
    """On each rank: check both collectives' results, then time them. Bytes a second that a rank hands in.

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


def main(backend: str, seconds: float) -> None:
    """One rank: print the speeds (rank 0) and leave."""
    # A rank whose parent was killed ends by itself.
    signal.alarm(int(seconds) + 5)
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    speeds = measure(backend)
    if dist.get_rank() == 0:
        print(json.dumps(speeds), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
