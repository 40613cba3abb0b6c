"""Measured rate between two nodes: gloo sends in both directions. `netlab --measure` runs this on two ranks."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

MESSAGE_BYTES = 1 << 20


def send_chunks(source: int, chunks: int) -> float:
    """Seconds of sending chunks of 1 MiB from one rank to the other, until the receiver confirms the last one."""
    peer, buffer, arrived = 1 - dist.get_rank(), torch.zeros(MESSAGE_BYTES, dtype=torch.uint8), torch.zeros(1)
    sends = dist.get_rank() == source
    begin = time.monotonic()
    for _ in range(chunks):
        _ = dist.send(buffer, peer) if sends else dist.recv(buffer, peer)
    _ = dist.recv(arrived, peer) if sends else dist.send(arrived, peer)
    return time.monotonic() - begin


def main(rate: str, chunks: int) -> None:
    """Measure both directions. Rank 0 prints its own times, which differ from rank 1's by one small message."""
    dist.init_process_group("gloo")
    for source in (0, 1):
        send_chunks(source, 2)  # connects, and empties the token bucket
        seconds = send_chunks(source, chunks)
        mbit = chunks * MESSAGE_BYTES * 8 / seconds / 1e6
        if dist.get_rank() == 0:
            what = f"{chunks} MiB in {seconds:.2f} s = {mbit:.1f} Mbit/s ({mbit / 8:.1f} MB/s)"
            print(f"node {source} -> node {1 - source}: {what}, limit {rate}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
