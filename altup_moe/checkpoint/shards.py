"""Safetensors files a piece at a time: written and hashed as they stream by, read slice by slice.

The library reads and writes whole files; a resharder has one tensor in memory, and a hash that costs a second pass
over a terabyte is one that gets turned off. So the format (see header.py) is written and read here, in bytes; files
from here open with the library, and the other way round.

Items are numpy unsigned integers of the dtype's size (numpy has no bfloat16): only whole items are moved.
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
from altup_moe.parallel.parameter_mapping import TensorSlice

ITEM_TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Item size -> what stands for the items."""
READ_BYTES = 1 << 24
"""Rows read at a time where a slice is narrower than its tensor."""
HASH_BLOCK_BYTES = 1 << 20
"""Bytes hashed at a time: they stay in the core's cache."""
FLUSH_BYTES = 1 << 24
"""Written bytes that the disk is asked to start on, so that the flush at the end has less to wait for."""


def item_type(dtype: str) -> Any:
    """Numpy type that carries items of a stored dtype."""
    return ITEM_TYPES[ITEM_BYTES[dtype]]


class Closeable(AbstractContextManager):
    """Something that is closed at the end of a `with` statement."""

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ShardWriter:
    """Writes one file: declare every tensor, then hand each over in that order.

    A block is hashed and written while the core's cache holds it, and the disk starts on it at once. To use more
    cores write several files at a time: handing small pieces to a second thread costs more than it gains.

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
        """The next tensor's items; the array may be reused afterwards."""
        data = np.ascontiguousarray(items).reshape(-1).view(np.uint8).data
        if self._next >= len(self._sizes) or len(data) != self._sizes[self._next]:
            raise AssertionError(f"tensor {self._next} has {len(data)} bytes, which were not declared")
        self._next += 1
        self._put(data)

    def close(self) -> StoredFile:
        """Flush to the disk. Returns size and hash of what was written."""
        if self._next != len(self._sizes):
            raise AssertionError(f"{self._next} of {len(self._sizes)} declared tensors were written")
        os.fsync(self._file.fileno())
        self.abandon()
        return StoredFile(self._written, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close without flushing; the file is the caller's to remove."""
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
    """Write one file of (key, dtype, shape) from their items in order, one at a time, flushed to the disk.

    Raises:
        OSError: from the file system; what was written of the file is the caller's to remove.
    """
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

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_plain(path)
        try:
            self.entries: dict[str, HeaderEntry] = read_header(self._file)
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
        """Hex SHA-256 of the open file's bytes: of those that `read_into` gives, whatever its name now stands for."""
        digest, block, offset = hashlib.sha256(), np.empty(HASH_BLOCK_BYTES, np.uint8), 0
        while count := self._preadv(block.data, offset):
            digest.update(block.data[:count])
            offset += count
        return digest.hexdigest()

    def read_into(self, key: str, tensor_slice: TensorSlice, out: np.ndarray) -> None:
        """Copy a slice of a tensor into `out`: of the box's shape, items of the dtype's size; strides are its own.

        Raises:
            ValueError: the slice does not lie in the tensor, or `out` is another array. DataError: the file is cut.
        """
        entry = self.entries[key]
        if not in_bounds(tensor_slice, entry.shape):
            raise ValueError(f"{key} has the shape {entry.shape}, which has no {tensor_slice}")
        if out.shape != slice_shape(tensor_slice) or out.dtype.itemsize != ITEM_BYTES[entry.dtype]:
            raise ValueError(f"{out.dtype} {out.shape} cannot take {tensor_slice} of {key} ({entry.dtype})")
        if out.size:
            self._copy(entry.offset, entry.shape, tensor_slice, out)

    def read(self, key: str, tensor_slice: TensorSlice) -> np.ndarray:
        """A slice of a tensor, in an array of its own."""
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
            # Even one row is too much to hold: go into each.
            for place, start in enumerate(range(first, last)):
                self._copy(offset + start * row, shape[1:], tensor_slice[1:], out[place])
            return
        # A band of whole rows at a time; what is outside the slice is read and dropped.
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
    """Open files by name."""

    def __init__(self) -> None:
        self._readers: dict[str, ShardReader] = {}

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
