"""`altup-moe prepare-data SOURCE OUT_PREFIX`: tokenise a text corpus once, into files that `data.corpus` can name."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.command import Command
from altup_moe.config.errors import ConfigError
from altup_moe.config.ranges import COUNT, Range
from altup_moe.data.corpora import CORPORA, load_corpus
from altup_moe.data.document import Document
from altup_moe.data.files import staging
from altup_moe.data.indexed import refuse_existing, suffixed
from altup_moe.data.manifest import DatasetManifest
from altup_moe.data.named_tokenizers import tokenizer_directory
from altup_moe.data.prepare import SUFFIXES, prepare_tokens
from altup_moe.data.sources import LeftOut, hub_documents, local_documents, local_files
from altup_moe.data.tokenizer import load_tokenizer, train_bpe

DEFAULT_VOCAB = 4096


WORKERS = Range(1, 1024)
"""More threads than any machine has cores for; a process cannot start threads without end."""


@dataclass(frozen=True)
class PrepareDataOptions:
    """Tokenise text into OUT_PREFIX.bin, .idx, .json and .tokenizer/."""

    source: str
    """Named corpus, Hugging Face dataset name, or local file, directory or glob."""
    out: Path
    """Path prefix to write."""
    tokenizer: Path | None = None
    """Directory of a Hugging Face tokenizer, or t5; None trains a byte-level BPE on the source, which is read twice."""
    add_special_tokens: bool = False
    """Begin every document with what --tokenizer itself puts before a text, as runs with data.add_special_tokens do."""
    vocab_size: int | None = None
    """Size of the BPE that is trained without --tokenizer, in tokens; None is 4096."""
    sentinels: int | None = None
    """Sentinels that this BPE reserves (<extra_id_0>, ..., and <pad>), as model.arch t5 and span corruption need them;
    None is none."""
    text_key: str = "text"
    """Column that holds the text."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    config: str | None = None
    """Configuration of a Hugging Face dataset."""
    workers: int | None = None
    """Threads that tokenise; None is one a core."""
    overwrite: bool = False
    """Replace existing files at OUT_PREFIX."""


def documents(options: PrepareDataOptions, cache_dir: Path, left_out: LeftOut) -> Iterator[Document]:
    """The documents of the source. Each call reads them again; ``left_out`` gets what became none."""
    if options.source in CORPORA:
        yield from load_corpus(options.source, options.out.parent)
    elif files := local_files(options.source, left_out):
        yield from local_documents(files, options.text_key, left_out)
    else:
        yield from hub_documents(
            options.source, options.text_key, cache_dir, left_out, split=options.split, config=options.config
        )


def prepare_source(options: PrepareDataOptions) -> tuple[DatasetManifest, float, LeftOut]:
    """Tokenise the source. Returns the manifest, the seconds of reading and tokenising, and what was left out."""
    if options.tokenizer is not None and options.vocab_size is not None:
        raise ConfigError("vocab_size", options.vocab_size, "is for a new tokenizer; --tokenizer brings its own")
    if options.tokenizer is not None and options.sentinels is not None:
        raise ConfigError("sentinels", options.sentinels, "is for a new tokenizer; --tokenizer brings its own")
    for key, within in (("vocab_size", COUNT), ("sentinels", COUNT), ("workers", WORKERS)):
        if (value := getattr(options, key)) is not None:
            within.check(key, value)
    refuse_existing([suffixed(options.out, end) for end in SUFFIXES], options.overwrite)
    with staging(options.out.parent, options.out.name) as temporary:
        _settle(temporary / "cache", options.workers)
        if options.tokenizer is not None:
            directory = tokenizer_directory(str(options.tokenizer), options.out.parent)
            tokenizer = load_tokenizer(directory, options.add_special_tokens)
        else:
            texts = (d.text for d in documents(options, temporary / "cache", LeftOut()))
            tokenizer = train_bpe(texts, options.vocab_size or DEFAULT_VOCAB, temporary / "bpe", options.sentinels or 0)
        started, left_out = time.monotonic(), LeftOut()
        stream = _progress(documents(options, temporary / "cache", left_out))
        manifest = prepare_tokens(stream, tokenizer, options.out, options.source, overwrite=options.overwrite)
        return manifest, time.monotonic() - started, left_out


def prepare_data(options: PrepareDataOptions) -> int:
    """Tokenise a source, and say what came of it. Returns 0."""
    manifest, seconds, left_out = prepare_source(options)
    print(
        f"{options.out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens of {manifest.vocab_size}, "
        f"{manifest.bytes:,} bytes ({manifest.bytes / manifest.tokens:.2f} a token), "
        f"{manifest.bytes / 1e6 / seconds:.2f} MB/s"
    )
    for line in left_out.lines():
        print(line)
    return 0


def _settle(cache_dir: Path, workers: int | None) -> None:
    """Set variables that libraries read when they start: caches in the temporary directory, number of threads."""
    for name in ("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        os.environ[name] = str(cache_dir)
    if workers is not None:
        os.environ["RAYON_NUM_THREADS"] = str(workers)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"


def _progress(stream: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents and report the progress on standard error."""
    read, shown, started = 0, 0.0, time.monotonic()
    for number, document in enumerate(stream, 1):
        read += len(document.text.encode())
        seconds = time.monotonic() - started
        if seconds - shown > 2:
            shown = seconds
            print(f"{number:,} documents, {read / 1e6:,.1f} MB, {read / 1e6 / seconds:.2f} MB/s", file=sys.stderr)
        yield document


PREPARE_DATA = Command(
    "prepare-data",
    "SOURCE OUT_PREFIX [options]",
    ["altup-moe prepare-data 'texts/*.jsonl' data/mine --vocab-size 8192"],
    PrepareDataOptions,
    prepare_data,
    positional=["source", "out"],
    stray="several files are one SOURCE: a glob in quotes, or their directory",
    more="""SOURCE is a file, a directory or a glob in quotes of text, jsonl or parquet; a named corpus (python-docs,
    wikipedia-sample); or a Hugging Face dataset. A text file is one document, as is a row of jsonl or parquet. Files
    may be compressed (.gz, .bz2, .xz, .zst). Rows and files that are left out are named at the end. Train on the result
    with --data.corpus OUT_PREFIX.""",
)
main = PREPARE_DATA.main
