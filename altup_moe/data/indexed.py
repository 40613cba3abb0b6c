"""Megatron's indexed token files, written and checked with numpy alone.

Format (megatron.core.datasets.indexed_dataset, version 1), little-endian:

    PREFIX.bin   the token ids, one after the other
    PREFIX.idx   bytes 0-8  magic ``MMIDIDX``, two zero bytes       | 9-16  version (uint64) = 1
                 byte  17   dtype code: 8 uint16, 4 int32           | 18-25 sequences n (uint64)
                 bytes 26-33 document boundaries m (uint64)         | 34-   lengths int32[n], in tokens
                 then pointers int64[n], in bytes of the .bin       | then  boundaries int64[m], in sequences

Here one sequence is one document (GPTDataset counts in documents), so m = n + 1 and the boundaries are 0..n.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from altup_moe.config.errors import DataError
from altup_moe.config.files import fsync
from altup_moe.data.files import staging

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION_AT, _DTYPE_AT, _SEQUENCES_AT, _BOUNDARIES_AT = 9, 17, 18, 26
_DTYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_MAX_LENGTH = 2**31 - 1  # lengths are int32
_CHUNK = 1 << 24  # bytes read at a time


@dataclass(frozen=True)
class IndexedTokens:
    """A token file with a checked index.

    Args:
        prefix: path without ``.bin`` / ``.idx``.
        dtype: dtype of the token ids (uint16 or int32).
        lengths: [documents] int32, in tokens, each at least 1.
        pointers: [documents] int64, byte offset of each document in the .bin.
    """

    prefix: Path
    dtype: np.dtype[Any]
    lengths: np.ndarray
    pointers: np.ndarray

    @property
    def bin(self) -> Path:
        """Path of the .bin file."""
        return suffixed(self.prefix, ".bin")

    @property
    def tokens(self) -> int:
        """Number of tokens of all documents."""
        return int(self.lengths.sum(dtype=np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document, [lengths[index]], as a copy."""
        count, offset = int(self.lengths[index]), int(self.pointers[index])
        return np.fromfile(self.bin, dtype=self.dtype, count=count, offset=offset)


def suffixed(prefix: str | Path, suffix: str) -> Path:
    """``prefix + suffix`` (`Path.with_suffix` would replace a part of a name with a dot)."""
    return Path(f"{prefix}{suffix}")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of Megatron's dtypes that can hold ids below ``vocab_size``."""
    return _DTYPES[8] if vocab_size <= 2**16 else _DTYPES[4]


def write_indexed(
    prefix: str | Path, documents: Iterable[Sequence[int] | np.ndarray], vocab_size: int, *, overwrite: bool = False
) -> IndexedTokens:
    """Write documents (token ids each) to ``PREFIX.bin`` and ``PREFIX.idx``.

    Both files are written to a temporary directory, flushed and then renamed: an error changes nothing.

    Raises:
        DataError: the prefix exists and ``overwrite`` is off; an id outside 0..vocab_size-1 (with the byte offset it
            would have had in the .bin); a document without tokens or too long; no documents at all.
    """
    bin_path, idx_path = suffixed(prefix, ".bin"), suffixed(prefix, ".idx")
    refuse_existing([bin_path, idx_path], overwrite)
    dtype = token_dtype(vocab_size)
    lengths = array("i")
    with staging(bin_path.parent, bin_path.name) as temporary:
        at = 0
        with (temporary / "bin").open("wb") as file:
            for number, document in enumerate(documents):
                ids = np.asarray(document, dtype=np.int64)
                if not 0 < len(ids) <= _MAX_LENGTH:
                    raise DataError(bin_path, f"document {number} has {len(ids)} tokens, not 1 to {_MAX_LENGTH}", at)
                _check_range(ids, vocab_size, bin_path, at, dtype.itemsize)
                file.write(ids.astype(dtype).tobytes())
                lengths.append(len(ids))
                at += len(ids) * dtype.itemsize
        if not lengths:
            raise DataError(bin_path, "the dataset would be empty: there are no documents")
        (temporary / "idx").write_bytes(_index_bytes(np.asarray(lengths, dtype="<i4"), dtype))
        fsync(temporary / "bin")
        fsync(temporary / "idx")
        os.replace(temporary / "bin", bin_path)
        os.replace(temporary / "idx", idx_path)
        fsync(bin_path.parent)
    return read_index(prefix)


def read_index(prefix: str | Path) -> IndexedTokens:
    """Read and check ``PREFIX.idx`` against the format and against the size of ``PREFIX.bin``.

    Raises:
        DataError: with the file and the byte offset of the first error.
    """
    bin_path, idx_path = suffixed(prefix, ".bin"), suffixed(prefix, ".idx")
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise DataError(path, "no such file")
    raw = idx_path.read_bytes()
    if raw[: len(MAGIC)] != MAGIC:
        raise DataError(idx_path, f"not an indexed token file: magic is {raw[: len(MAGIC)]!r}, not {MAGIC!r}", 0)
    if len(raw) < _HEADER.size:
        raise DataError(idx_path, f"ends inside its header of {_HEADER.size} bytes", len(raw))
    _, version, code, sequences, boundaries = _HEADER.unpack_from(raw)
    if version != 1:
        raise DataError(idx_path, f"format version {version}, not 1", _VERSION_AT)
    if code not in _DTYPES:
        raise DataError(idx_path, f"dtype code {code}, not 8 (uint16) or 4 (int32)", _DTYPE_AT)
    if sequences == 0:
        raise DataError(idx_path, "the dataset is empty: 0 documents", _SEQUENCES_AT)
    if boundaries != sequences + 1:
        problem = f"{boundaries} document boundaries for {sequences} sequences: each document must be one sequence"
        raise DataError(idx_path, problem, _BOUNDARIES_AT)
    pointers_at = _HEADER.size + 4 * sequences
    boundaries_at = pointers_at + 8 * sequences
    size = boundaries_at + 8 * boundaries
    if len(raw) != size:
        problem = f"{len(raw)} bytes, but {sequences} documents take {size}"
        raise DataError(idx_path, problem, min(len(raw), size))

    dtype = _DTYPES[code]
    lengths = np.frombuffer(raw, "<i4", sequences, _HEADER.size)
    pointers = np.frombuffer(raw, "<i8", sequences, pointers_at)
    limits = np.frombuffer(raw, "<i8", boundaries, boundaries_at)
    if (bad := _first(lengths <= 0)) is not None:
        raise DataError(idx_path, f"document {bad} has length {lengths[bad]}", _HEADER.size + 4 * bad)
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    starts = ends - lengths.astype(np.int64) * dtype.itemsize
    if (bad := _first(pointers != starts)) is not None:
        problem = f"document {bad} starts at byte {pointers[bad]} of the .bin; the one before ends at {starts[bad]}"
        raise DataError(idx_path, problem, pointers_at + 8 * bad)
    if (bad := _first(limits != np.arange(boundaries))) is not None:
        problem = f"document boundary {bad} is {limits[bad]}, not {bad}: each document must be one sequence"
        raise DataError(idx_path, problem, boundaries_at + 8 * bad)
    if (actual := bin_path.stat().st_size) != ends[-1]:
        problem = f"{actual} bytes, but {idx_path.name} describes {ends[-1]}"
        raise DataError(bin_path, problem, min(actual, int(ends[-1])))
    return IndexedTokens(Path(prefix), dtype, lengths, pointers)


def scan_tokens(indexed: IndexedTokens, vocab_size: int) -> str:
    """Read every token once: check its range, and return the hex sha256 of the .bin.

    Raises:
        DataError: naming the .bin and the byte offset of the first id outside 0..vocab_size-1.
    """
    digest, at = hashlib.sha256(), 0
    with indexed.bin.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            _check_range(np.frombuffer(chunk, indexed.dtype), vocab_size, indexed.bin, at, indexed.dtype.itemsize)
            at += len(chunk)
    return digest.hexdigest()


def verify_indexed(prefix: str | Path, vocab_size: int) -> IndexedTokens:
    """`read_index` and `scan_tokens`: all checks that are possible without the texts. Raises DataError."""
    indexed = read_index(prefix)
    scan_tokens(indexed, vocab_size)
    return indexed


def refuse_existing(paths: Iterable[Path], overwrite: bool) -> None:
    """Raise DataError for the first path that exists, unless `overwrite` is set."""
    for path in paths:
        if path.exists() and not overwrite:
            raise DataError(path, "exists already; --overwrite replaces it")


def _index_bytes(lengths: np.ndarray, dtype: np.dtype[Any]) -> bytes:
    sizes = lengths.astype("<i8") * dtype.itemsize
    pointers = np.cumsum(sizes) - sizes
    header = _HEADER.pack(MAGIC, 1, _CODES[dtype], len(lengths), len(lengths) + 1)
    boundaries = np.arange(len(lengths) + 1, dtype="<i8")
    return b"".join([header, lengths.tobytes(), pointers.astype("<i8").tobytes(), boundaries.tobytes()])


def _check_range(ids: np.ndarray, vocab_size: int, file: Path, at: int, itemsize: int) -> None:
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    bad = int(np.argmax((ids < 0) | (ids >= vocab_size)))
    raise DataError(file, f"token id {ids[bad]} is outside the vocabulary of {vocab_size}", at + bad * itemsize)


def _first(mask: np.ndarray) -> int | None:
    return int(np.argmax(mask)) if mask.any() else None
