"""A tokenizer and prepared data that the tests of a directory share."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare
from altup_moe.data.tokenizer import Tokenizer, train_bpe
from tests.unit.train.runs import TEXT


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of fewer tokens than the tiny model's vocabulary."""
    return train_bpe([TEXT], 280, tmp_path_factory.mktemp("bpe") / "tokenizer")


@pytest.fixture(scope="session")
def prefix(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents, tokenised."""
    path = tmp_path_factory.mktemp("data") / "tokens"
    prepare((Document(f"d{n}", f"{n} {TEXT}") for n in range(12)), bpe, path, "mine")
    return path
