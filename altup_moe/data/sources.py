"""Stream documents from local files, or from a dataset of the Hugging Face hub; count what is left out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from altup_moe.config.data_checks import CORPUS_NAMES, is_corpus
from altup_moe.config.errors import ConfigError, DataError, UserError
from altup_moe.config.text_corpora import table_hint
from altup_moe.data.document import Document
from altup_moe.data.text_files import FORMATS, KNOWN, Row, file_format, file_rows, row_text

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_NAMES_SHOWN = 5


@dataclass
class LeftOut:
    """What a source holds that became no document. Mutable: readers add to it.

    Args:
        files: reason -> names of files and directories of a directory that were not read.
        empty_rows: file or dataset -> numbers of its first empty row and of all of them.
    """

    files: dict[str, list[str]] = field(default_factory=dict)
    empty_rows: dict[str, tuple[int, int]] = field(default_factory=dict)

    def file(self, reason: str, name: str) -> None:
        """Add a file or directory."""
        self.files.setdefault(reason, []).append(name)

    def empty_row(self, source: str, number: int) -> None:
        """Add a row without text."""
        first, count = self.empty_rows.get(source, (number, 0))
        self.empty_rows[source] = (first, count + 1)

    def lines(self) -> list[str]:
        """One sentence for each reason, and one for each source with empty rows."""
        said = []
        for reason, names in self.files.items():
            more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
            said.append(f"left out, {reason}: {', '.join(names[:_NAMES_SHOWN])}{more}")
        for source, (first, count) in self.empty_rows.items():
            said.append(f"left out, empty: {count:,} row{'s' * (count > 1)} of {source}, first row {first}")
        return said


def local_files(source: str, left_out: LeftOut) -> list[Path]:
    """Files of a file name, a directory (with its subdirectories) or a glob, sorted; empty if nothing matches.

    Of a directory are left out: what is hidden (its name begins with a dot), what has no known format, and .json (more
    often settings than data; a file that is named is read).

    Args:
        left_out: gets the files of a directory that are not read.

    Raises:
        DataError: a directory has no file of a known format, a named file has none, a file is empty, or a directory
            holds a file twice, once compressed.
    """
    if not source:  # as of a shell's variable that is not set; a Path of it is the working directory
        return []
    path = Path(source)
    if path.is_dir():
        files = sorted(_in_directory(path, left_out))
        if not files:
            tables = [file for file in sorted(path.rglob("*")) if table_hint(file)]
            follows = table_hint(tables[0]) if tables else ""
            raise DataError(path, f"holds no file of a known format ({KNOWN}; in directories not .json){follows}")
        _refuse_copies(files)
    else:
        files = [path] if path.is_file() else sorted({Path(f) for f in glob.glob(source, recursive=True)})
        files = [file for file in files if file.is_file()]
    for file in files:
        if file_format(file) is None:
            raise DataError(file, f"unknown format {file.suffix!r}; known are {KNOWN}{table_hint(file)}")
        if file.stat().st_size == 0:
            raise DataError(file, "is empty", 0)
    return files


def check_text_corpus(key: str, corpus: str) -> None:
    """Raise UserError unless `corpus` is a known name, prepared data, or text that can be read as it is."""
    if not is_corpus(corpus) and not local_files(corpus, LeftOut()):
        fits = f"there is no such file, and no {corpus}.idx; text, {' or '.join(CORPUS_NAMES)} would fit"
        raise ConfigError(key, corpus, fits)


def _in_directory(root: Path, left_out: LeftOut) -> Iterator[Path]:
    visited = set()
    for folder, directories, names in os.walk(root, followlinks=True):
        here = Path(folder)
        visited.add(here.resolve())
        for name in sorted(directories):
            if name.startswith("."):
                left_out.file("hidden", f"{(here / name).relative_to(root)}/")
        # A link back to a directory that was read would give its files twice.
        directories[:] = sorted(
            name for name in directories if not name.startswith(".") and (here / name).resolve() not in visited
        )
        for name in sorted(names):
            file, found = here / name, file_format(here / name)
            shown = str(file.relative_to(root))
            if name.startswith("."):
                left_out.file("hidden", shown)
            elif found is None or not file.is_file():
                left_out.file("of no known format", shown)
            elif found.kind == "json":
                left_out.file(".json must be named", shown)
            else:
                yield file


def _refuse_copies(files: list[Path]) -> None:
    present = set(files)
    for file in files:
        if (found := file_format(file)) and found.compression and file.with_suffix("") in present:
            raise DataError(file, f"is there twice: {file.with_suffix('').name} lies beside it; name the files to read")


def local_documents(files: Iterable[Path], text_key: str, left_out: LeftOut) -> Iterator[Document]:
    """Yield the documents of local files in order: a text file is one document, and so is a row of the other formats.

    Args:
        text_key: column of the text in JSON and parquet files.
        left_out: gets the rows whose text is empty.

    Raises:
        DataError: a file cannot be read, a row has no text, or a file has none (with the byte offset, if known).
    """
    for file in files:
        number, empty = -1, True
        for row in file_rows(file, text_key):
            number = row.number
            try:
                text = row_text(row, text_key)
            except ValueError as error:
                raise DataError(file, f"row {number} {error}", row.offset) from error
            if text:
                empty = False
                yield Document(f"{file} row {number}", text)
            else:
                left_out.empty_row(str(file), number)
        if empty:
            raise DataError(file, "has no text" if number >= 0 else "has no rows")


def hub_documents(
    name: str, text_key: str, cache_dir: Path, left_out: LeftOut, *, split: str = "train", config: str | None = None
) -> Iterator[Document]:
    """Yield the documents of a dataset of the hub; rows with empty text are left out, and counted.

    Raises:
        UserError: the dataset cannot be opened, or the connection fails.
        DataError: the text column of a row is missing or is not text.
    """
    if not _HUB_NAME.fullmatch(name) or Path(name).suffix.lower() in FORMATS or file_format(Path(name)):
        raise UserError(f"{name}: no such file, and not the name of a corpus or a Hugging Face dataset")
    datasets = _quiet_datasets()
    source, empty = f"{name} ({split})", True
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(
            name, config, split=split, streaming=True, cache_dir=str(cache_dir)
        )
        for number, content in enumerate(rows):
            try:
                text = row_text(Row(number, content), text_key)
            except ValueError as error:
                raise DataError(source, f"row {number} {error}") from error
            if text:
                empty = False
                yield Document(f"{source} row {number}", text)
            else:
                left_out.empty_row(source, number)
    except UserError:
        raise
    except Exception as error:  # datasets and the hub raise many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fits = f"a file, a directory, a glob in quotes or {', '.join(CORPUS_NAMES)} would fit"
        raise UserError(f"{name}: no such file, and no dataset that can be read ({first}); {fits}") from error
    if empty:
        raise DataError(source, "has no text")


def _quiet_datasets() -> Any:
    import datasets  # a second of import

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # its errors come out as ours
    return datasets
