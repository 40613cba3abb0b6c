"""Documents to token ids, in batches, with a check that the tokenizer can spell them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from altup_moe.config.errors import DataError
from altup_moe.data.document import Document
from altup_moe.data.tokenizer import Tokenizer, token_byte_lengths, unknown_id

BATCH_DOCUMENTS = 256
BATCH_CHARACTERS = 1 << 22
"""A batch is tokenised in parallel threads; it ends at whichever of the two comes first."""

MAX_LOSS = 0.01
"""Share of a batch's bytes that tokens may lose or add. Unicode normalisation of a few characters stays below it; a
tokenizer that cannot spell the data does not."""


@dataclass
class ByteCount:
    """Counts while documents stream through. ``bytes``: UTF-8 bytes of their texts."""

    bytes: int = 0


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, tally: ByteCount) -> Iterator[list[int]]:
    """Token ids of each document, ended by the tokenizer's end token.

    Raises:
        DataError: naming the document and the byte offset in its text: an unknown token, or tokens that stand for
            another number of bytes than the text has. Also a tokenizer whose tokens' bytes cannot be counted.
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
            yield [*ids, tokenizer.eod]


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
