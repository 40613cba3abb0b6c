"""What two nodes really exchange: gloo sends between ranks 0 and 1 in turn. Run by `netlab --measure` on two ranks."""

from __future__ import annotations

import sys
import time

import torch
import torch.distributed as dist

MESSAGE_BYTES = 1 << 20


def send_chunks(source: int, chunks: int) -> float:
    """Send chunks of 1 MiB from one rank to the other; seconds until the last has arrived (the receiver says so)."""
    peer, buffer, arrived = 1 - dist.get_rank(), torch.zeros(MESSAGE_BYTES, dtype=torch.uint8), torch.zeros(1)
    sends = dist.get_rank() == source
    begin = time.monotonic()
    for _ in range(chunks):
        _ = dist.send(buffer, peer) if sends else dist.recv(buffer, peer)
    _ = dist.recv(arrived, peer) if sends else dist.send(arrived, peer)
    return time.monotonic() - begin


def main(rate: str, chunks: int) -> None:
    """Print both directions on rank 0, with the times of rank 0 (they differ from rank 1's by one small message)."""
    dist.init_process_group("gloo")
    for source in (0, 1):
        send_chunks(source, 2)  # connects, and empties the bucket that a pause has filled
        seconds = send_chunks(source, chunks)
        mbit = chunks * MESSAGE_BYTES * 8 / seconds / 1e6
        if dist.get_rank() == 0:
            what = f"{chunks} MiB in {seconds:.2f} s = {mbit:.1f} Mbit/s ({mbit / 8:.1f} MB/s)"
            print(f"node {source} -> node {1 - source}: {what}, limit {rate}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
