"""Tokenise once: documents and a tokenizer become a token file that trainings share.

    PREFIX.bin, PREFIX.idx   the tokens (data.indexed), every document ended by the tokenizer's end token
    PREFIX.tokenizer/        the tokenizer that made them
    PREFIX.json              what they are, with hashes; written last, so its presence says that the rest is complete
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from altup_moe.config.errors import ConfigError, DataError
from altup_moe.data.corpora import CORPORA, load_corpus
from altup_moe.data.document import Document
from altup_moe.data.files import fsync, sha256_file, staging
from altup_moe.data.indexed import IndexedTokens, read_index, refuse_existing, scan_tokens, suffixed, write_indexed
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, train_bpe, unknown_id

FORMAT_VERSION = 1
BATCH = 256
"""Documents tokenised at a time."""


@dataclass(frozen=True)
class Manifest:
    """What PREFIX.json says. ``bytes``: UTF-8 bytes of all documents; hashes are sha256."""

    corpus: str
    source_key: str
    vocab_size: int
    documents: int
    tokens: int
    bytes: int
    bin_sha256: str
    idx_sha256: str
    tokenizer_sha256: str
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Prepared:
    """A verified token file with its tokenizer."""

    prefix: Path
    manifest: Manifest
    index: IndexedTokens
    tokenizer_dir: Path


def tokenizer_dir(prefix: Path) -> Path:
    """Directory of the tokenizer beside prepared data."""
    return suffixed(prefix, ".tokenizer")


def prepare(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    prefix: Path,
    corpus: str,
    *,
    source_key: str = "",
    overwrite: bool = False,
) -> Manifest:
    """Tokenise documents into `prefix`. Nothing changes unless all of it succeeds.

    Args:
        documents: read once, in order.
        corpus: name to record. source_key: identity of texts and tokenizer, to find the result again.
    Raises:
        DataError: a text that the tokenizer cannot spell (its source is named), no documents, or an existing prefix.
    """
    manifest_file = suffixed(prefix, ".json")
    refuse_existing([suffixed(prefix, ".bin"), suffixed(prefix, ".idx"), manifest_file], overwrite)
    with staging(prefix.parent, prefix.name) as temporary:
        counter = _Counter()
        aside = temporary / "tokens"
        write_indexed(aside, _token_ids(documents, tokenizer, counter), tokenizer.vocab_size)
        index = read_index(aside)
        save_tokenizer(tokenizer, tokenizer_dir(aside))
        manifest = Manifest(
            corpus=corpus,
            source_key=source_key,
            vocab_size=tokenizer.vocab_size,
            documents=len(index),
            tokens=index.tokens,
            bytes=counter.bytes,
            bin_sha256=sha256_file(index.bin),
            idx_sha256=sha256_file(suffixed(aside, ".idx")),
            tokenizer_sha256=tokenizer.sha256,
        )
        suffixed(aside, ".json").write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        fsync(suffixed(aside, ".json"))
        manifest_file.unlink(missing_ok=True)
        shutil.rmtree(tokenizer_dir(prefix), ignore_errors=True)
        for suffix in (".tokenizer", ".bin", ".idx", ".json"):
            os.replace(suffixed(aside, suffix), suffixed(prefix, suffix))
        fsync(prefix.parent)
    return manifest


@dataclass
class _Counter:
    bytes: int = 0


def _token_ids(documents: Iterable[Document], tokenizer: Tokenizer, counter: _Counter) -> Iterator[list[int]]:
    unknown, stream = unknown_id(tokenizer), iter(documents)
    while batch := list(islice(stream, BATCH)):
        for document, ids in zip(batch, tokenizer.encode_batch([d.text for d in batch]), strict=True):
            if unknown is not None and unknown in ids:
                problem = f"the tokenizer in {tokenizer.directory} cannot spell this text (unknown token {unknown})"
                raise DataError(document.source, problem)
            counter.bytes += len(document.text.encode())
            yield [*ids, tokenizer.eod]


def prepare_named(corpus: str, vocab_size: int, tokenizer: str | None, cache_dir: Path) -> Path:
    """Prefix of a named corpus' token file, prepared in `cache_dir` unless it lies there; any other name is a prefix.

    Args:
        vocab_size: size of the BPE that is trained where no tokenizer is given.
        tokenizer: directory of a tokenizer, or None.
    """
    if corpus not in CORPORA:
        return Path(corpus)
    chosen = load_tokenizer(tokenizer) if tokenizer else None
    identity = f"{CORPORA[corpus].fingerprint()}:{chosen.sha256 if chosen else f'bpe-{vocab_size}'}:{FORMAT_VERSION}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    prefix = cache_dir / f"{corpus}-{key[:12]}"
    if suffixed(prefix, ".json").is_file():
        return prefix
    documents = load_corpus(corpus, cache_dir)
    with staging(cache_dir, "tokenizer") as temporary:
        bpe = chosen or train_bpe((d.text for d in documents), vocab_size, temporary / "bpe")
        prepare(documents, bpe, prefix, corpus, source_key=key, overwrite=True)
    return prefix


def read_manifest(prefix: Path) -> Manifest:
    """PREFIX.json.

    Raises:
        DataError: it is missing, no JSON, or of another version.
    """
    file = suffixed(prefix, ".json")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(file, f"format version {version!r}; this program reads {FORMAT_VERSION}")
        return Manifest(**content)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); prepare the data with tools/prepare_data.py"
        raise DataError(file, problem) from error
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(file, f"is no manifest of prepared data ({error})") from error


def open_prepared(prefix: Path, vocab_size: int, *, scan: bool = True) -> Prepared:
    """Check prepared data against its manifest and a model's vocabulary. Reads only.

    Args:
        vocab_size: of the model; at least the tokenizer's.
        scan: also read every token (range and hash); one rank of a run is enough.
    Raises:
        DataError: a file that is damaged or does not belong (with its byte offset), or token ids out of range.
        ConfigError: model.vocab_size is smaller than the tokenizer's vocabulary.
    """
    manifest = read_manifest(prefix)
    if manifest.vocab_size > vocab_size:
        fits = f"{prefix} was tokenised with {manifest.vocab_size} tokens; set at least that"
        raise ConfigError("model.vocab_size", vocab_size, fits)
    index = read_index(prefix)
    directory = tokenizer_dir(prefix)
    found = load_tokenizer(directory).sha256
    if found != manifest.tokenizer_sha256:
        problem = f"is not the tokenizer of this data: sha256 {found[:12]}, its manifest has {manifest.tokenizer_sha256[:12]}"
        raise DataError(directory / "tokenizer.json", problem)
    if scan:
        digest = scan_tokens(index, manifest.vocab_size)
        if digest != manifest.bin_sha256:
            raise DataError(index.bin, f"sha256 is {digest[:12]}, its manifest has {manifest.bin_sha256[:12]}")
    return Prepared(prefix, manifest, index, directory)
