"""Safetensors files, one tensor at a time: written and hashed in one pass, read slice by slice.

The safetensors library reads and writes whole files. A resharder has memory for one tensor, and hashing in a second
pass would double the reading, so this module implements the format (see header.py). The library can read these files,
and this module can read the library's.

numpy has no bfloat16: items are unsigned integers of the dtype's size.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from altup_moe.checkpoint.header import HeaderEntry, header_bytes, read_header
from altup_moe.checkpoint.manifest import ITEM_BYTES, StoredFile
from altup_moe.checkpoint.plain import open_plain, start_flush
from altup_moe.checkpoint.slices import in_bounds, slice_shape
from altup_moe.config import DataError
from altup_moe.config.os_errors import naming
from altup_moe.parallel.parameter_mapping import TensorSlice

ITEM_TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Size of an item in bytes -> numpy type that holds its bits."""
READ_BYTES = 1 << 24
"""Bytes read at a time where a slice is narrower than its tensor: whole rows, then the slice's columns are copied."""
HASH_BLOCK_BYTES = 1 << 20
"""Bytes hashed and written at a time; a block fits into the core's cache."""
FLUSH_BYTES = 1 << 24
"""After so many written bytes the disk is asked to start writing them, which shortens the flush at the end."""


def item_type(dtype: str) -> Any:
    """numpy type that holds the bits of a stored dtype's items."""
    return ITEM_TYPES[ITEM_BYTES[dtype]]


class Closeable(AbstractContextManager):
    """Base of objects that a `with` statement closes."""

    def close(self) -> None:
        """Release the resources."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ShardWriter:
    """Writes one file: the constructor takes the description of every tensor, `write` their items in the same order.

    Each block is hashed and written while it is in the core's cache. To use more cores, write several files at a time.

    Raises:
        OSError: from the file system, a full disk above all. ValueError: a key is declared twice.
    """

    def __init__(
        self,
        path: Path,
        entries: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        header, self._sizes = header_bytes(entries, metadata)
        self._hash, self._next = hashlib.sha256(), 0
        self._written = self._begun = 0
        self._file = path.open("xb", buffering=0)
        try:
            self._put(memoryview(header))
        except BaseException:
            self.abandon()
            raise

    def write(self, items: np.ndarray) -> None:
        """Write the next tensor's items. The array may be reused afterwards."""
        data = np.ascontiguousarray(items).reshape(-1).view(np.uint8).data
        if self._next >= len(self._sizes) or len(data) != self._sizes[self._next]:
            raise AssertionError(f"tensor {self._next} has {len(data)} bytes, which were not declared")
        self._next += 1
        self._put(data)

    def close(self) -> StoredFile:
        """Flush to the disk and close. Returns the file's size and hash."""
        if self._next != len(self._sizes):
            raise AssertionError(f"{self._next} of {len(self._sizes)} declared tensors were written")
        os.fsync(self._file.fileno())
        self.abandon()
        return StoredFile(self._written, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close without flushing. The caller removes the file."""
        self._file.close()

    def _put(self, data: memoryview) -> None:
        for start in range(0, len(data), HASH_BLOCK_BYTES):
            block = data[start : start + HASH_BLOCK_BYTES]
            self._hash.update(block)
            while block:
                count = self._file.write(block)
                self._written += count
                block = block[count:]
        if self._written - self._begun >= FLUSH_BYTES:
            start_flush(self._file.fileno(), self._begun, self._written - self._begun)
            self._begun = self._written


def write_tensors(
    path: Path,
    entries: Sequence[tuple[str, str, tuple[int, ...]]],
    tensors: Iterable[np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> StoredFile:
    """Write one file and flush it to the disk, one tensor at a time.

    Args:
        entries: (key, dtype, shape) of every tensor. tensors: their items, in the same order.
        metadata: text values for the header's ``__metadata__``.
    Raises:
        OSError: from the file system; the caller removes the incomplete file.
    """
    with naming(path):
        writer = ShardWriter(path, entries, metadata)
        try:
            for items in tensors:
                writer.write(items)
            return writer.close()
        except BaseException:
            writer.abandon()
            raise


class ShardReader(Closeable):
    """One open file and its checked header. Safe to read from several threads.

    Raises:
        DataError: no regular file, or its header is not a safetensors header that fits the file's size.
    """

    def __init__(self, path: Path, tensors: int | None = None) -> None:
        """``tensors``: how many the file should hold (`read_header`)."""
        self.path = path
        self._file = open_plain(path)
        try:
            self.entries: dict[str, HeaderEntry] = read_header(self._file, tensors)
        except BaseException as error:
            os.close(self._file)
            if isinstance(error, OSError):
                raise DataError(path, f"cannot be read ({error.strerror})") from error
            if isinstance(error, ValueError):
                raise DataError(path, f"is no safetensors file ({error})") from error
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def sha256(self) -> str:
        """Hex SHA-256 of the open file, the one that `read_into` reads, even if its path now names another."""
        digest, block, offset = hashlib.sha256(), np.empty(HASH_BLOCK_BYTES, np.uint8), 0
        while count := self._preadv(block.data, offset):
            digest.update(block.data[:count])
            offset += count
        return digest.hexdigest()

    def read_into(self, key: str, tensor_slice: TensorSlice, out: np.ndarray) -> None:
        """Copy a slice of a tensor into `out`, an array of the slice's shape and `item_type`, with any strides.

        Raises:
            ValueError: the slice does not lie in the tensor, or `out` has another shape or item size.
            DataError: the file is truncated.
        """
        entry = self.entries[key]
        if not in_bounds(tensor_slice, entry.shape):
            raise ValueError(f"{key} has the shape {entry.shape}, which has no {tensor_slice}")
        if out.shape != slice_shape(tensor_slice) or out.dtype.itemsize != ITEM_BYTES[entry.dtype]:
            raise ValueError(f"{out.dtype} {out.shape} cannot take {tensor_slice} of {key} ({entry.dtype})")
        if out.size:
            self._copy(entry.offset, entry.shape, tensor_slice, out)

    def read(self, key: str, tensor_slice: TensorSlice) -> np.ndarray:
        """A slice of a tensor as a new array."""
        out = np.empty(slice_shape(tensor_slice), item_type(self.entries[key].dtype))
        self.read_into(key, tensor_slice, out)
        return out

    def _copy(self, offset: int, shape: tuple[int, ...], tensor_slice: TensorSlice, out: np.ndarray) -> None:
        full_below = all(ends == (0, n) for ends, n in zip(tensor_slice[1:], shape[1:], strict=True))
        row = math.prod(shape[1:]) * out.dtype.itemsize
        first, last = tensor_slice[0] if tensor_slice else (0, 1)
        if full_below and out.flags.c_contiguous:
            self._read(offset + first * row, out)
            return
        if row > READ_BYTES and len(tensor_slice) > 1:
            # One row exceeds the limit: read each row in parts.
            for row_index, start in enumerate(range(first, last)):
                self._copy(offset + start * row, shape[1:], tensor_slice[1:], out[row_index])
            return
        # Read a band of whole rows, then copy the slice's columns.
        step = max(1, READ_BYTES // row)
        band = np.empty((min(step, last - first), *shape[1:]), out.dtype)
        columns = tuple(slice(start, stop) for start, stop in tensor_slice[1:])
        for start in range(first, last, step):
            rows = band[: min(step, last - start)]
            self._read(offset + start * row, rows)
            out[start - first : start - first + len(rows)] = rows[(slice(None), *columns)]

    def _read(self, offset: int, out: np.ndarray) -> None:
        rest = out.reshape(-1).view(np.uint8).data
        while rest:
            count = self._preadv(rest, offset)
            if count == 0:
                raise DataError(self.path, "ends before its tensors do")
            rest, offset = rest[count:], offset + count

    def _preadv(self, out: memoryview, offset: int) -> int:
        try:
            return os.preadv(self._file, [out], offset)
        except OSError as error:
            raise DataError(self.path, f"cannot be read ({error.strerror})") from error


class ShardReaders(Closeable):
    """A set of open files, by name."""

    def __init__(self) -> None:
        self._readers: dict[str, ShardReader] = {}

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
