"""The rank's side of the watchdog: it keeps notes in memory that its watcher maps, and ends when that says so."""

from __future__ import annotations

import faulthandler
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from altup_moe.config.exit_codes import EXIT_HUNG
from altup_moe.parallel.start_ranks import environment_with_package
from altup_moe.parallel.watchdog import ring, watcher
from altup_moe.parallel.watchdog.notes import keep_notes

PROCESS_GROUP_SECONDS = 24 * 3600.0
"""Timeout of process groups under a watchdog: gloo's and NCCL's own would end the healthy rank, and name no cause."""


def process_group_seconds(hang_timeout: float | None) -> float:
    """The timeout of process groups: 600 s without a watchdog."""
    return PROCESS_GROUP_SECONDS if hang_timeout else 600.0


@contextmanager
def watched(directory: Path, hang_timeout: float | None) -> Iterator[None]:
    """Keep notes, and have this rank watched (if `hang_timeout` is not 0 or None) while open.

    A rank is told by the launcher's RANK and WORLD_SIZE, so this may open before any process group.

    Args:
        directory: where watchers meet, and reports go: `run_directory.watchdog_dir`.
        hang_timeout: seconds without progress of any rank, beyond the longest step.
    """
    if not hang_timeout or not sys.platform.startswith("linux"):
        with keep_notes():
            yield
        return
    memory, shared = ring.new_memory(shared=True)
    assert shared is not None
    stacks = os.memfd_create("altup-moe-stacks")
    ours, theirs = socket.socketpair()
    orders = watcher.Orders(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        pid=os.getpid(),
        timeout=float(hang_timeout),
        directory=str(directory.absolute()),
        memory=shared,
        stacks=stacks,
        pipe=theirs.fileno(),
        exit_code=EXIT_HUNG,
        start_seconds=watcher.START_SECONDS,
    )
    faulthandler.register(watcher.STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
    try:
        process = _start(orders)
        os.close(shared)
        theirs.close()
        threading.Thread(target=_obey, args=(ours, directory, orders.rank), name="watchdog", daemon=True).start()
        with keep_notes(memory):
            try:
                yield
            finally:
                _leave(ours, process)
    finally:
        faulthandler.unregister(watcher.STACKS_SIGNAL)
        os.close(stacks)


def _start(orders: watcher.Orders) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        watcher.start_command(orders),
        env=environment_with_package(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(orders.memory, orders.stacks, orders.pipe),
    )


def _obey(pipe: socket.socket, directory: Path, rank: int) -> None:
    """A thread: end the process when the watcher says so, whatever the main thread waits for."""
    with suppress(OSError):
        while data := pipe.recv(64):
            if watcher.PING in data:
                pipe.send(watcher.PING)
            if watcher.END in data:
                device_trace(directory, rank)
                os._exit(EXIT_HUNG)


def _leave(pipe: socket.socket, process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        pipe.send(watcher.QUIT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(OSError):
        # Wakes the thread that reads.
        pipe.shutdown(socket.SHUT_RDWR)
    pipe.close()


def device_trace(directory: Path, rank: int) -> None:
    """Under CUDA: write what torch's FlightRecorder knows of operations on the GPU beside the report.

    The variable TORCH_FR_BUFFER_SIZE switches the recorder on.
    """
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if not torch.cuda.is_available() or dump is None:
        return
    with suppress(Exception):
        (directory / f"device_{rank:05d}.json").write_bytes(dump())
