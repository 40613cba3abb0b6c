"""Encode documents to token ids in batches, and check that the tokenizer can represent them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from altup_moe.config.errors import DataError
from altup_moe.data.document import Document
from altup_moe.data.tokenizer import Tokenizer, token_byte_lengths, unknown_id

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 22
"""Limits of a batch, which is tokenised in parallel threads; it ends at the first limit reached."""

MAX_LOSS = 0.01
"""Largest fraction of a batch's bytes by which tokens and texts may differ. Unicode normalisation of a few characters
stays below it; a tokenizer that cannot represent the data exceeds it."""


@dataclass
class ByteCount:
    """Counter of the UTF-8 bytes of the documents encoded so far."""

    bytes: int = 0


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, tally: ByteCount) -> Iterator[list[int]]:
    """Yield the token ids of each document, with what begins and ends one (`Tokenizer.document`).

    Args:
        tally: its ``bytes`` grows with every batch.
    Raises:
        DataError: a text contains an unknown token, or its tokens represent another number of bytes than it has (with
            the document and the byte offset); or the bytes of the tokenizer's tokens cannot be counted.
    """
    spelled, unknown = token_byte_lengths(tokenizer), unknown_id(tokenizer)
    for batch in _batches(documents):
        lost, size, first = 0, 0, None
        encoded = tokenizer.encode_batch([document.text for document in batch])
        for document, ids in zip(batch, encoded, strict=True):
            if unknown is not None and unknown in ids:
                raise _unknown(document, tokenizer, unknown)
            written = len(document.text.encode())
            difference = abs(int(spelled[np.asarray(ids, dtype=np.int64)].sum()) - written)
            if difference > 1:  # one byte may be the space that sentencepiece puts before a text
                lost += difference
                first = first or (document, ids)
            size += written
        if first is not None and lost > MAX_LOSS * size:
            raise _lossy(*first, tokenizer, lost, size)
        tally.bytes += size
        for ids in encoded:
            yield tokenizer.document(ids)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _unknown(document: Document, tokenizer: Tokenizer, unknown: int) -> DataError:
    encoding = tokenizer.backend.encode(document.text, add_special_tokens=False)
    begin, end = encoding.offsets[encoding.ids.index(unknown)]
    text = document.text[begin : min(end, begin + 20)]
    problem = f"the tokenizer in {tokenizer.directory} has no token for {text!r}"
    return DataError(document.source, problem, len(document.text[:begin].encode()))


def _lossy(document: Document, ids: list[int], tokenizer: Tokenizer, lost: int, size: int) -> DataError:
    text, spelled = document.text.encode(), tokenizer.decode(ids).encode()
    problem = (
        f"the tokenizer in {tokenizer.directory} does not spell this text: tokens and text "
        f"differ by {lost} of {size} bytes, first here"
    )
    at = next((i for i, (a, b) in enumerate(zip(text, spelled, strict=False)) if a != b), min(len(text), len(spelled)))
    return DataError(document.source, problem, at)
