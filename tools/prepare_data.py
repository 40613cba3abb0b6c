#!/usr/bin/env python3
"""Tokenise any text once, into files that `data.corpus` names.

    python tools/prepare_data.py SOURCE OUT_PREFIX [options]

SOURCE is a named corpus (python-docs, wikipedia-sample), a Hugging Face dataset name, or local text, jsonl or parquet:
a file, a directory of such files, or a glob in quotes. A plain text file is one document; a jsonl or parquet row is one.
"""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from altup_moe.config.errors import ConfigError, DataError, UserError
from altup_moe.data.corpora import CORPORA, load_corpus
from altup_moe.data.document import Document
from altup_moe.data.files import staging
from altup_moe.data.prepare import Manifest, prepare
from altup_moe.data.tokenizer import load_tokenizer, train_bpe

FORMATS = {".txt": "text", ".text": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Options:
    """Tokenise text into OUT_PREFIX.bin, .idx, .json and .tokenizer/."""

    source: tyro.conf.Positional[str]
    """Named corpus, Hugging Face dataset name, or local file, directory or glob."""
    out: tyro.conf.Positional[Path]
    """Path prefix to write."""
    tokenizer: Path | None = None
    """Directory of a Hugging Face tokenizer; None trains a byte-level BPE on the source."""
    vocab_size: int = 4096
    """Size of the BPE that is trained without --tokenizer, in tokens."""
    text_key: str = "text"
    """Column that holds the text."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    name: str | None = None
    """Configuration of a Hugging Face dataset."""
    overwrite: bool = False
    """Replace existing files at OUT_PREFIX."""


def local_files(source: str) -> list[Path]:
    """Files that a local source means, sorted; empty if it is no path.

    Raises:
        DataError: a directory or file without a known format, or an empty file.
    """
    path = Path(source)
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix in FORMATS)
        if not files:
            raise DataError(path, f"holds no file of a known format ({', '.join(FORMATS)})")
    else:
        files = [path] if path.is_file() else sorted(Path(f) for f in glob.glob(source, recursive=True))
    for file in files:
        if file.suffix not in FORMATS:
            raise DataError(file, f"unknown format {file.suffix!r}; known are {', '.join(FORMATS)}")
        if file.stat().st_size == 0:
            raise DataError(file, "is empty", 0)
    return files


def local_documents(files: list[Path], text_key: str) -> Iterator[Document]:
    """Documents of local files in order, read in a stream (no cache is written)."""
    from datasets import load_dataset

    for file in files:
        kind = FORMATS[file.suffix]
        extra = {"sample_by": "document"} if kind == "text" else {}
        rows = load_dataset(kind, data_files=str(file), split="train", streaming=True, **extra)
        yield from _rows(rows, str(file), "text" if kind == "text" else text_key)


def hub_documents(options: Options) -> Iterator[Document]:
    """Documents of a dataset of the hub, in a stream.

    Raises:
        UserError: it cannot be opened.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(options.source, options.name, split=options.split, streaming=True)
    except Exception as error:  # datasets raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{options.source}: no local file, and no dataset that can be opened ({reason})") from error
    yield from _rows(rows, options.source, options.text_key)


def _rows(rows: object, source: str, key: str) -> Iterator[Document]:
    number = -1
    try:
        for number, row in enumerate(rows):  # type: ignore[call-overload]
            if key not in row:
                raise DataError(f"{source} row {number}", f"has no column {key!r}; it has {', '.join(row)}")
            if not isinstance(row[key], str):
                raise DataError(f"{source} row {number}", f"column {key!r} is {type(row[key]).__name__}, not text")
            if row[key]:
                yield Document(f"{source} row {number}", row[key])
    except UserError:
        raise
    except Exception as error:  # pyarrow and json raise many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source} row {number + 1}", f"cannot be read ({reason})") from error
    if number < 0:
        raise DataError(source, "has no rows")


def documents(options: Options) -> Iterator[Document]:
    """The source's documents; calling it again reads them again."""
    if options.source in CORPORA:
        yield from load_corpus(options.source, options.out.parent)
        return
    files = local_files(options.source)
    yield from local_documents(files, options.text_key) if files else hub_documents(options)


def _progress(stream: Iterator[Document]) -> Iterator[Document]:
    """Pass documents on and say on standard error how far it is."""
    read, shown, started = 0, 0.0, time.monotonic()
    for number, document in enumerate(stream, 1):
        read += len(document.text.encode())
        seconds = time.monotonic() - started
        if seconds - shown > 2:
            shown = seconds
            print(f"{number:,} documents, {read / 1e6:,.1f} MB, {read / 1e6 / seconds:.2f} MB/s", file=sys.stderr)
        yield document


def run(options: Options) -> Manifest:
    """Do it. Returns what was written."""
    if options.vocab_size < 257:
        raise ConfigError("vocab-size", options.vocab_size, "must be 257 or more (256 bytes and an end token)")
    with staging(options.out.parent, options.out.name) as temporary:
        if options.tokenizer is not None:
            tokenizer = load_tokenizer(options.tokenizer)
        else:
            texts = (d.text for d in documents(options))
            tokenizer = train_bpe(texts, options.vocab_size, temporary / "bpe")
        return prepare(_progress(documents(options)), tokenizer, options.out, options.source, overwrite=options.overwrite)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns 0, or 2 with one line on standard error for what the user can mend."""
    options = tyro.cli(Annotated[Options, tyro.conf.FlagCreatePairsOff], args=argv, description=__doc__)
    started = time.monotonic()
    try:
        manifest = run(options)
    except UserError as error:
        print(f"prepare_data: error: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - started
    print(
        f"{options.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.vocab_size}, "
        f"{manifest.bytes:,} bytes ({manifest.bytes / manifest.tokens:.2f} a token), {manifest.bytes / 1e6 / seconds:.2f} MB/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
