"""Safetensors files a piece at a time: written and hashed as they stream by, read box by box.

The library reads and writes whole files; a resharder has one tensor in memory, and a hash that costs a second pass
over a terabyte is one that gets turned off. So the format (8 bytes of header length, a JSON header, the items in order)
is written and read here, in bytes; files from here open with the library, and the other way round.
Source of the format: https://github.com/huggingface/safetensors.

Items are numpy unsigned integers of the dtype's size (numpy has no bfloat16): only whole items are moved.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from altup_moe.checkpoint.boxes import box_shape
from altup_moe.checkpoint.manifest import ITEM_BYTES, StoredFile
from altup_moe.config import DataError
from altup_moe.parallel.names import Box

CARRIERS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Item size -> what stands for the items."""
BAND_BYTES = 1 << 24
"""Rows read at a time where a box is narrower than its tensor."""
MAX_HEADER = 100_000_000
"""Bytes; the library's limit as well."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, as its header has it. ``offset``: bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Bytes of its items."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def carrier(dtype: str) -> Any:
    """Numpy type that carries items of a stored dtype."""
    return CARRIERS[ITEM_BYTES[dtype]]


class ShardWriter:
    """Writes one file: declare every tensor, then hand each over in that order. Hashing runs beside writing.

    Raises:
        OSError: from the file system, a full disk above all.
    """

    def __init__(
        self,
        path: Path,
        entries: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        offset = 0
        self._sizes: list[int] = []
        for key, dtype, shape in entries:
            size = math.prod(shape) * ITEM_BYTES[dtype]
            header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
            self._sizes.append(size)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._hash, self._written, self._next = hashlib.sha256(), 0, 0
        self._file = path.open("xb", buffering=0)
        self._hasher = ThreadPoolExecutor(1)
        self._put(memoryview(len(text).to_bytes(8, "little") + text))

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
        self._hasher.shutdown()
        self._file.close()

    def _put(self, data: memoryview) -> None:
        hashed = self._hasher.submit(self._hash.update, data)
        rest = data
        while rest:
            rest = rest[self._file.write(rest) :]
        hashed.result()
        self._written += len(data)


class ShardReader:
    """One open file and its checked header.

    Raises:
        DataError: no regular file, or its header is not a safetensors header that fits the file's size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            raise DataError(path, f"cannot be opened ({error.strerror})") from error
        try:
            self.entries = _header(self._file)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            os.close(self._file)
            raise DataError(path, f"is no safetensors file ({error})") from error

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read_into(self, key: str, box: Box, out: np.ndarray) -> None:
        """Copy a box of a tensor into `out` (same shape; strides are its own)."""
        entry = self.entries[key]
        item = out.dtype.itemsize
        if not out.size:
            return
        full_below = all(ends == (0, n) for ends, n in zip(box[1:], entry.shape[1:], strict=True))
        row = math.prod(entry.shape[1:]) * item
        first, last = box[0] if box else (0, 1)
        if full_below and out.flags.c_contiguous:
            self._read(entry.offset + first * row, out)
            return
        # A band of whole rows at a time; what is outside the box is read and dropped.
        step = max(1, BAND_BYTES // row)
        band = np.empty((min(step, last - first), *entry.shape[1:]), out.dtype)
        columns = tuple(slice(start, stop) for start, stop in box[1:])
        for start in range(first, last, step):
            rows = band[: min(step, last - start)]
            self._read(entry.offset + start * row, rows)
            out[start - first : start - first + len(rows)] = rows[(slice(None), *columns)]

    def read(self, key: str, box: Box) -> np.ndarray:
        """A box of a tensor, in an array of its own."""
        out = np.empty(box_shape(box), carrier(self.entries[key].dtype))
        self.read_into(key, box, out)
        return out

    def _read(self, offset: int, out: np.ndarray) -> None:
        rest = out.reshape(-1).view(np.uint8).data
        while rest:
            count = os.preadv(self._file, [rest], offset)
            if count == 0:
                raise DataError(self.path, "ends before its tensors do")
            rest, offset = rest[count:], offset + count


def _header(file: int) -> dict[str, Entry]:
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise ValueError(f"its header would have {length} bytes")
    content = json.loads(os.pread(file, length, 8))
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    content.pop("__metadata__", None)
    start, entries = 8 + length, {}
    end = start
    for key, value in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        entry = Entry(value["dtype"], tuple(value["shape"]), start + value["data_offsets"][0])
        if not all(type(n) is int and n >= 0 for n in entry.shape):
            raise ValueError(f"{key} has the shape {entry.shape}")
        if entry.offset != end or start + value["data_offsets"][1] != end + entry.bytes:
            raise ValueError(f"{key} does not follow the tensor before it")
        end += entry.bytes
        entries[key] = entry
    if end != size:
        raise ValueError(f"its tensors end at byte {end} of {size}")
    return entries
