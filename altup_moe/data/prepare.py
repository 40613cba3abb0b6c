"""Tokenise documents into a token file that many runs can share.

PREFIX.bin, PREFIX.idx   the tokens (data.indexed); each document ends with the tokenizer's end token
PREFIX.tokenizer/        the tokenizer
PREFIX.json              description and hashes; written last, so its presence means that the rest is complete
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config import RunConfig
from altup_moe.config.errors import ConfigError, DataError
from altup_moe.config.files import fsync
from altup_moe.config.run_directory import data_dir
from altup_moe.data.corpora import CORPORA, load_corpus
from altup_moe.data.document import Document
from altup_moe.data.encode import ByteCount, encode_documents
from altup_moe.data.files import fsync_tree, sha256_file, staging
from altup_moe.data.indexed import IndexedTokens, read_index, refuse_existing, scan_tokens, suffixed, write_indexed
from altup_moe.data.manifest import (
    DATASET_FORMAT_VERSION,
    DatasetManifest,
    read_dataset_manifest,
    write_dataset_manifest,
)
from altup_moe.data.named_tokenizers import tokenizer_directory
from altup_moe.data.tokenizer import MIN_BPE_VOCAB, Tokenizer, load_tokenizer, save_tokenizer, train_bpe

_logger = logging.getLogger(__name__)

SUFFIXES = (".tokenizer", ".bin", ".idx", ".json")
"""Suffixes of the files that `prepare_tokens` writes, in the order in which they are published."""


@dataclass(frozen=True)
class Prepared:
    """A verified token file with its tokenizer."""

    prefix: Path
    manifest: DatasetManifest
    index: IndexedTokens
    tokenizer_dir: Path


def data_cache(config: RunConfig) -> Path:
    """Where downloads and tokenised corpora are kept."""
    return Path(config.data.cache) if config.data.cache else data_dir(config.log.run_dir)


def prepared_tokenizer_dir(prefix: Path) -> Path:
    """Directory of the tokenizer of prepared data."""
    return suffixed(prefix, ".tokenizer")


def prepare_tokens(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    prefix: Path,
    corpus: str,
    *,
    source_key: str = "",
    overwrite: bool = False,
) -> DatasetManifest:
    """Tokenise documents into `prefix`. An error changes nothing.

    Args:
        documents: read once, in order.
        corpus: name for the manifest. source_key: identity of texts and tokenizer, for the manifest.

    Raises:
        DataError: the tokenizer cannot represent a text (with its source and byte offset), there are no documents, or
            `prefix` exists.
    """
    refuse_existing([suffixed(prefix, suffix) for suffix in SUFFIXES], overwrite)
    with staging(prefix.parent, prefix.name) as temporary:
        tally, aside = ByteCount(), temporary / "tokens"
        try:
            index = write_indexed(aside, encode_documents(documents, tokenizer, tally), tokenizer.vocab_size)
        except DataError as error:
            if error.file != str(suffixed(aside, ".bin")):
                raise
            # Name the final file: the temporary one is removed before the user reads the error.
            raise DataError(suffixed(prefix, ".bin"), error.problem, error.offset) from error
        save_tokenizer(tokenizer, prepared_tokenizer_dir(aside))
        manifest = DatasetManifest(
            corpus=corpus,
            source_key=source_key,
            vocab_size=tokenizer.vocab_size,
            documents=len(index),
            tokens=index.tokens,
            bytes=tally.bytes,
            bin_sha256=sha256_file(index.bin),
            idx_sha256=sha256_file(suffixed(aside, ".idx")),
            tokenizer_sha256=tokenizer.sha256,
        )
        write_dataset_manifest(suffixed(aside, ".json"), manifest)
        fsync_tree(temporary)
        # The old manifest is removed first and the new one published last: an interruption is detected.
        suffixed(prefix, ".json").unlink(missing_ok=True)
        if prepared_tokenizer_dir(prefix).exists():
            os.replace(prepared_tokenizer_dir(prefix), temporary / "replaced")
        for suffix in SUFFIXES:
            os.replace(suffixed(aside, suffix), suffixed(prefix, suffix))
        fsync(prefix.parent)
    return manifest


def prepare_named(
    corpus: str,
    vocab_size: int,
    tokenizer: str | Path | None,
    cache_dir: Path,
    sentinels: int = 0,
    add_special_tokens: bool = False,
) -> Path:
    """Prefix of a named corpus's token file, which is prepared in `cache_dir` first if it is missing or damaged.

    Any other `corpus` is a prefix itself. The name of the prepared directory contains a hash of texts, tokenizer and
    format, and one rename publishes it, so several processes can prepare the same data at once.

    Args:
        vocab_size: of the model, and of the BPE that is trained if no tokenizer is given.
        tokenizer: directory or name of a tokenizer, or None.
        sentinels: number of sentinels of a BPE that is trained here (`train_bpe`).
        add_special_tokens: whether documents begin with what the tokenizer itself puts before a text.

    Raises:
        ConfigError: model.vocab_size below the tokenizer's vocabulary, or too small for a BPE.
        DataError: prepared data of another tokenizer than the one given, and as `load_corpus` and `prepare_tokens`.
    """
    chosen = load_tokenizer(tokenizer_directory(str(tokenizer), cache_dir), add_special_tokens) if tokenizer else None
    if corpus not in CORPORA:
        if chosen is not None:
            check_tokenizer(chosen, Path(corpus))
        return Path(corpus)
    prefix, key = named_prefix(corpus, vocab_size, chosen, cache_dir, sentinels)
    directory = prefix.parent
    if _usable(prefix, vocab_size, key):
        return prefix
    documents = load_corpus(corpus, cache_dir)
    with staging(cache_dir, directory.name) as temporary:
        bpe = chosen or train_bpe((d.text for d in documents), vocab_size, temporary / "bpe", sentinels)
        prepare_tokens(documents, bpe, temporary / "new" / "tokens", corpus, source_key=key)
        if directory.exists() and not _usable(prefix, vocab_size, key):
            os.replace(directory, temporary / "damaged")
        try:
            os.rename(temporary / "new", directory)
        except OSError:  # another process was first
            if not _usable(prefix, vocab_size, key):
                raise
        fsync(cache_dir)
    return prefix


def named_prefix(
    corpus: str, vocab_size: int, chosen: Tokenizer | None, cache_dir: Path, sentinels: int = 0
) -> tuple[Path, str]:
    """(prefix, key) of a named corpus's token file, whether or not it has been prepared. Writes nothing.

    Args:
        chosen: the tokenizer; None for a BPE trained on the corpus. The others: as `prepare_named`.

    Raises:
        ConfigError: model.vocab_size below the tokenizer's vocabulary, or too small for a BPE.
    """
    _check_vocab(vocab_size, chosen)
    trained = f"bpe-{vocab_size}" + (f"-{sentinels}" if sentinels else "")
    identity = f"{CORPORA[corpus].fingerprint()}:{chosen.sha256 if chosen else trained}:{DATASET_FORMAT_VERSION}"
    if chosen is not None and chosen.document_start:
        identity += f":{chosen.document_start}"
    key = hashlib.sha256(identity.encode()).hexdigest()
    return cache_dir / f"{corpus}-{key[:12]}" / "tokens", key


def open_prepared(prefix: Path, vocab_size: int, *, scan: bool = True) -> Prepared:
    """Check prepared data against its manifest and a model's vocabulary. Reads only.

    Args:
        vocab_size: of the model; at least the tokenizer's.
        scan: also read every token (range and hash); one rank of a run is enough.

    Raises:
        DataError: a file is damaged or of other data (with the byte offset), or a token id is out of range.
        ConfigError: model.vocab_size is smaller than the tokenizer's vocabulary.
    """
    manifest = read_dataset_manifest(suffixed(prefix, ".json"))
    if manifest.vocab_size > vocab_size:
        fits = f"{prefix} was tokenised with {manifest.vocab_size} tokens; set at least that"
        raise ConfigError("model.vocab_size", vocab_size, fits)
    index = read_index(prefix)
    _check_hash(suffixed(prefix, ".idx"), sha256_file(suffixed(prefix, ".idx")), manifest.idx_sha256)
    directory = prepared_tokenizer_dir(prefix)
    _check_hash(directory / "tokenizer.json", load_tokenizer(directory).sha256, manifest.tokenizer_sha256)
    if scan:
        _check_hash(index.bin, scan_tokens(index, manifest.vocab_size), manifest.bin_sha256)
    return Prepared(prefix, manifest, index, directory)


def _usable(prefix: Path, vocab_size: int, key: str) -> bool:
    if not prefix.parent.exists():
        return False
    try:
        return open_prepared(prefix, vocab_size).manifest.source_key == key
    except DataError as error:
        _logger.warning("prepared again: %s", error)
        return False


def _check_vocab(vocab_size: int, chosen: Tokenizer | None) -> None:
    if chosen is None and vocab_size < MIN_BPE_VOCAB:
        fits = f"a byte-level BPE needs at least {MIN_BPE_VOCAB}"
        raise ConfigError("model.vocab_size", vocab_size, fits)
    if chosen is not None and chosen.vocab_size > vocab_size:
        fits = f"the tokenizer in {chosen.directory} has {chosen.vocab_size} tokens; set at least that"
        raise ConfigError("model.vocab_size", vocab_size, fits)


def check_tokenizer(tokenizer: Tokenizer, prefix: Path) -> None:
    """Raise DataError if prepared data was made by another tokenizer."""
    made = read_dataset_manifest(suffixed(prefix, ".json")).tokenizer_sha256
    if tokenizer.sha256 != made:
        problem = (
            f"is not the tokenizer that made {prefix}: sha256 {tokenizer.sha256[:12]}, not {made[:12]}; "
            f"prepare the text again: altup-moe prepare-data TEXT PREFIX --tokenizer {tokenizer.directory}"
        )
        raise DataError(tokenizer.directory / "tokenizer.json", problem)


def _check_hash(file: Path, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(file, f"sha256 is {found[:12]}, the manifest of this data has {expected[:12]}")
