"""Fixtures of several unit tests. Heavy imports stand inside, so that collection imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from altup_moe.data.tokenizer import Tokenizer
    from altup_moe.parallel.topology import Topology


@pytest.fixture(scope="module")
def alone() -> Iterator[Topology]:
    """A world of one rank; the environment that `topology` completes is put back."""
    from altup_moe.config import ParallelConfig
    from altup_moe.parallel.topology import topology

    before = dict(os.environ)
    with topology(ParallelConfig()) as topo:
        yield topo
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A byte-level BPE of fewer tokens than the tiny model's vocabulary."""
    from altup_moe.data.tokenizer import train_bpe
    from tests.unit.train.runs import TEXT

    return train_bpe([TEXT], 280, tmp_path_factory.mktemp("bpe") / "tokenizer")


@pytest.fixture(scope="session")
def prefix(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents, tokenised."""
    from altup_moe.data.document import Document
    from altup_moe.data.prepare import prepare_tokens
    from tests.unit.train.runs import TEXT

    path = tmp_path_factory.mktemp("data") / "tokens"
    prepare_tokens((Document(f"d{n}", f"{n} {TEXT}") for n in range(12)), bpe, path, "mine")
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The driver of one headless Chromium."""
    from tests.browser import start_browser

    driver = start_browser(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()
