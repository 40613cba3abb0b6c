"""Stream documents from local text, jsonl and parquet files, or from a dataset of the Hugging Face hub."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from altup_moe.config.errors import DataError, UserError
from altup_moe.data.document import Document

TEXT_FILE_FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
}
# A .json file in a directory is more often settings or a manifest than data, so it must be named explicitly.
_IN_DIRECTORIES = TEXT_FILE_FORMATS.keys() - {".json"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def local_files(source: str) -> list[Path]:
    """Files of a file name, a directory (with its subdirectories) or a glob, sorted; empty if nothing matches.

    Raises:
        DataError: a directory or file has no known format, or a file is empty.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix in _IN_DIRECTORIES)
        if not files:
            raise DataError(path, f"holds no file of a known format ({', '.join(sorted(_IN_DIRECTORIES))})")
    else:
        files = [path] if path.is_file() else sorted(Path(f) for f in glob.glob(source, recursive=True))
        files = [file for file in files if file.is_file()]
    for file in files:
        if file.suffix not in TEXT_FILE_FORMATS:
            raise DataError(file, f"unknown format {file.suffix!r}; known are {', '.join(TEXT_FILE_FORMATS)}")
        if file.stat().st_size == 0:
            raise DataError(file, "is empty", 0)
    return files


def local_documents(files: Iterable[Path], text_key: str, cache_dir: Path) -> Iterator[Document]:
    """Yield the documents of local files in order: a text file is one document, and so is a row of the other formats.

    Args:
        text_key: column of the text in jsonl and parquet files.
        cache_dir: directory for the lock files of `datasets`.

    Raises:
        DataError: a file cannot be read, a row has no text, or a file has none (with the byte offset, if known).
    """
    from pyarrow import parquet  # type: ignore[import-untyped]

    datasets = _quiet_datasets()
    for file in files:
        kind = TEXT_FILE_FORMATS[file.suffix]
        extra = {"sample_by": "document"} if kind == "text" else {}
        key = "text" if kind == "text" else text_key
        number, empty = -1, True
        try:
            if kind == "parquet" and parquet.read_metadata(file).num_rows == 0:
                raise DataError(file, "has no rows")  # `datasets` fails on one with a message about batch sizes
            rows = datasets.load_dataset(
                kind, data_files=str(file), split="train", streaming=True, cache_dir=str(cache_dir), **extra
            )
            for number, row in enumerate(rows):
                if (problem := _problem(row, key)) is not None:
                    raise DataError(file, f"row {number} {problem}", _row_offset(file, number))
                if row[key]:
                    empty = False
                    yield Document(f"{file} row {number}", row[key])
        except UserError:
            raise
        except Exception as error:  # pyarrow, json and datasets raise many kinds
            offset = _damage(file, kind)
            raise DataError(file, f"cannot be read after {number + 1} rows ({_first_line(error)})", offset) from error
        if empty:
            raise DataError(file, "has no text" if number >= 0 else "has no rows")


def hub_documents(
    name: str, text_key: str, cache_dir: Path, *, split: str = "train", config: str | None = None
) -> Iterator[Document]:
    """Yield the documents of a dataset of the hub; rows with empty text are skipped.

    Raises:
        UserError: the dataset cannot be opened, or the connection fails.
        DataError: the text column of a row is missing or is not text.
    """
    if not _HUB_NAME.fullmatch(name) or Path(name).suffix in TEXT_FILE_FORMATS:
        raise UserError(f"{name}: no such file, and not the name of a corpus or a Hugging Face dataset")
    datasets = _quiet_datasets()
    empty = True
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            name, config, split=split, streaming=True, cache_dir=str(cache_dir)
        )
        for number, row in enumerate(rows):
            if (problem := _problem(row, text_key)) is not None:
                raise DataError(f"{name} ({split})", f"row {number} {problem}")
            if row[text_key]:
                empty = False
                yield Document(f"{name} ({split}) row {number}", row[text_key])
    except UserError:
        raise
    except Exception as error:  # datasets and the hub raise many kinds
        raise UserError(f"{name}: no such file, and no dataset that can be read ({_first_line(error)})") from error
    if empty:
        raise DataError(f"{name} ({split})", "has no text")


def _quiet_datasets() -> Any:
    import datasets  # a second of import

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # its errors come out as ours
    return datasets


def _problem(row: Mapping[str, Any], key: str) -> str | None:
    if key not in row:
        return f"has no column {key!r}; it has {', '.join(sorted(row))}"
    if not isinstance(row[key], str):
        return f"column {key!r} is {'empty' if row[key] is None else type(row[key]).__name__}, not text"
    return None


def _row_offset(file: Path, number: int) -> int | None:
    """Byte offset of a row of a jsonl file; None in the other formats."""
    if file.suffix != ".jsonl":
        return None
    at = 0
    with file.open("rb") as lines:
        for line in lines:
            if line.strip():
                if number == 0:
                    return at
                number -= 1
            at += len(line)
    return None


def _damage(file: Path, kind: str) -> int | None:
    """Offset of the first byte that is not UTF-8 or not JSON; None if there is none."""
    at = 0
    with file.open("rb") as lines:
        for line in lines if kind != "parquet" else ():
            try:
                text = line.decode()
                if file.suffix == ".jsonl" and text.strip():
                    json.loads(text)
            except UnicodeDecodeError as error:
                return at + error.start
            except json.JSONDecodeError as error:
                return at + len(text[: error.pos].encode())
            at += len(line)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
