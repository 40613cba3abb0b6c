"""Hashes of global tensors, which do not depend on how files divide the tensors. Bounded memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.slices import row_bands
from altup_moe.checkpoint.source import Checkpoint

BAND_BYTES = 1 << 23
"""Bytes of a tensor read at a time."""


@dataclass(frozen=True)
class DigestComparison:
    """Stored name -> hex SHA-256 of the tensors of two checkpoints."""

    source: dict[str, str]
    target: dict[str, str]

    @property
    def different(self) -> list[str]:
        """Names of tensors that differ or that only one checkpoint has, sorted."""
        names = self.source.keys() | self.target.keys()
        return sorted(name for name in names if self.source.get(name) != self.target.get(name))

    @property
    def combined(self) -> str:
        """One hash for all tensors of the target."""
        return combined_sha256(self.target)


def read_row_bands(checkpoint: Checkpoint, name: str, limit: int = BAND_BYTES) -> Iterator[np.ndarray]:
    """A stored tensor's items in row-major order, about `limit` bytes at a time."""
    stored = checkpoint.manifest.tensors[name]
    for tensor_slice in row_bands(stored.shape, limit // ITEM_BYTES[stored.dtype]):
        yield checkpoint.read(name, tensor_slice)


def tensor_sha256(checkpoint: Checkpoint, name: str) -> str:
    """Hex SHA-256 of a stored tensor's dtype, shape and bytes (row-major, little-endian)."""
    stored = checkpoint.manifest.tensors[name]
    digest = hashlib.sha256(f"{stored.dtype} {list(stored.shape)}\n".encode())
    for items in read_row_bands(checkpoint, name):
        digest.update(items.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def combined_sha256(digests: Mapping[str, str]) -> str:
    """Hex SHA-256 of the lines ``HASH  NAME``, sorted by name, as `sha256sum` writes them."""
    text = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()


def compare_digests(
    source: Checkpoint, target: Checkpoint, ignore: str = "rng/", on_bytes: Callable[[int], None] = lambda count: None
) -> DigestComparison:
    """Hash every tensor of both checkpoints, with one thread for each checkpoint.

    Args:
        ignore: names with this prefix are left out.
        on_bytes: called with the size in bytes of every tensor of the target once it is hashed.
    """

    def digests(checkpoint: Checkpoint, report: Callable[[int], None]) -> dict[str, str]:
        found = {}
        for name, stored in checkpoint.manifest.tensors.items():
            if not name.startswith(ignore):
                found[name] = tensor_sha256(checkpoint, name)
                report(math.prod(stored.shape) * ITEM_BYTES[stored.dtype])
        return found

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(digests, source, lambda count: None)
        second = pool.submit(digests, target, on_bytes)
        return DigestComparison(first.result(), second.result())
