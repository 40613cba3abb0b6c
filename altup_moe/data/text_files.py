"""Rows of one local file: text, JSON and parquet, plain or compressed, with nothing changed on the way.

A text file is one row. Bytes are decoded as UTF-8: line ends stay as they are, and only a byte order mark at the start
of a file is removed, because it belongs to the encoding.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from altup_moe.config.errors import DataError, UserError

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
}
"""Lower-case suffix of a file -> how its rows are stored."""

PARQUET_BATCH_ROWS = 1024
"""Rows of a parquet file that are in memory at a time."""


def _zstd(file: Path) -> BinaryIO:
    import pyarrow  # type: ignore[import-untyped]

    return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")))


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    "": lambda file: file.open("rb"),
    ".gz": lambda file: cast(BinaryIO, gzip.GzipFile(file)),
    ".bz2": lambda file: cast(BinaryIO, bz2.BZ2File(file)),
    ".xz": lambda file: cast(BinaryIO, lzma.LZMAFile(file)),  # noqa: SIM115 (the caller closes it)
    ".zst": _zstd,
}
KNOWN = f"{', '.join(FORMATS)}; all but .parquet also with {', '.join(list(_OPENERS)[1:])} after it"
"""The known suffixes, for messages."""


@dataclass(frozen=True)
class FileFormat:
    """How a file stores its rows: a value of `FORMATS`, and the suffix of its compression ("" for none)."""

    kind: str
    compression: str


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Args:
        number: from 0; blank lines are no rows.
        content: the row; it should be an object (checked by `row_text`).
        offset: byte at which it begins, of an uncompressed file of lines; else None.
    """

    number: int
    content: Any
    offset: int | None = None


def file_format(file: Path) -> FileFormat | None:
    """The format that a file's suffixes name, upper or lower case; None if it is none of them."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    kind = FORMATS.get(suffixes[-1]) if suffixes else None
    if kind is None or (compression and kind == "parquet"):
        return None
    return FileFormat(kind, compression)


def file_rows(file: Path, key: str) -> Iterator[Row]:
    """The rows of a file in order. A row of a text file has its text under `key`.

    Args:
        key: the only column that is read of a parquet file.

    Raises:
        DataError: a file that cannot be read, or is not UTF-8 or not JSON (with the byte offset, if not compressed).
    """
    form = file_format(file)
    if form is None:
        raise DataError(file, f"unknown format {file.suffix!r}; known are {KNOWN}")
    number = 0
    try:
        for row in _parquet(file, key) if form.kind == "parquet" else _decoded(file, form, key):
            yield row
            number = row.number + 1
    except UserError:
        raise
    except Exception as error:  # pyarrow, json and the decompressors raise many kinds
        offset = getattr(error, "at", None) if not form.compression else None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(file, f"cannot be read after {number} rows ({first})", offset) from error


def row_text(row: Row, key: str) -> str:
    """The text of a row.

    Raises:
        ValueError: the row has none; the message says why.
    """
    if not isinstance(row.content, dict):
        raise ValueError(f"is a JSON {type(row.content).__name__}, not an object")
    if key not in row.content:
        raise ValueError(f"has no column {key!r}; it has {', '.join(sorted(map(str, row.content)))}")
    text = row.content[key]
    if not isinstance(text, str):
        raise ValueError(f"column {key!r} is {'empty' if text is None else type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {key!r} has half of a surrogate pair at character {error.start}") from error
    return text


def _decoded(file: Path, form: FileFormat, key: str) -> Iterator[Row]:
    with _OPENERS[form.compression](file) as stream:
        if form.kind == "lines":
            yield from _lines(stream, plain=not form.compression)
            return
        raw = stream.read()
    start = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    text = _utf8(raw[start:], start)
    if form.kind == "text":
        yield Row(0, {key: text})
        return
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise _at(error, start + len(text[: error.pos].encode())) from error
        # One object a line, under the name of JSON.
        yield from _lines(io.BytesIO(raw), plain=True)
        return
    for number, row in enumerate(content if isinstance(content, list) else [content]):
        yield Row(number, row)


def _lines(stream: BinaryIO, plain: bool) -> Iterator[Row]:
    at = number = 0
    for line in stream:
        start = len(codecs.BOM_UTF8) if at == 0 and line.startswith(codecs.BOM_UTF8) else 0
        text = _utf8(line[start:], at + start)
        if text.strip():
            try:
                content = json.loads(text)
            except json.JSONDecodeError as error:
                raise _at(error, at + start + len(text[: error.pos].encode())) from error
            yield Row(number, content, at + start if plain else None)
            number += 1
        at += len(line)


def _parquet(file: Path, key: str) -> Iterator[Row]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        if table.metadata.num_rows and key not in (names := table.schema_arrow.names):
            raise DataError(file, f"row 0 has no column {key!r}; it has {', '.join(sorted(names))}")
        number = 0
        for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=[key]):
            for value in batch.column(key).to_pylist():
                yield Row(number, {key: value})
                number += 1


def _utf8(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _at(error, at + error.start) from error


def _at(error: Exception, offset: int) -> ValueError:
    """The error with the byte offset of its cause."""
    found = ValueError(str(error))
    found.at = offset  # type: ignore[attr-defined]
    return found
