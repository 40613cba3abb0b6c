"""Text files in the tokens of a run, for as long as they are read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from altup_moe.config import RunConfig
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.sources import LeftOut, local_documents, local_files
from altup_moe.data.tokenizer import load_tokenizer


@contextmanager
def tokenised_text(
    config: RunConfig, source: str, text_key: str, tokenizer_directory: Path
) -> Iterator[tuple[Path, LeftOut]]:
    """Tokenise local text as `altup-moe prepare-data --tokenizer RUN/tokenizer` does, into a temporary directory.

    Args:
        source: text, jsonl or parquet, compressed or not: a file, a directory or a glob.
        text_key: column of the text in jsonl and parquet.
    Yields:
        The path prefix of the tokens, which are removed at the end; what became no document.
    Raises:
        DataError: a file that cannot be read, or has no text.
    """
    tokenizer, left_out = load_tokenizer(tokenizer_directory, config.data.add_special_tokens), LeftOut()
    with tempfile.TemporaryDirectory(prefix="altup-moe-") as directory:
        prefix = Path(directory) / "tokens"
        files = local_files(source, left_out)
        prepare_tokens(local_documents(files, text_key, left_out), tokenizer, prefix, source)
        yield prefix, left_out
