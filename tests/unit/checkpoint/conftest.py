"""A good checkpoint, and a copy of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from altup_moe.config.run_directory import checkpoints_dir
from tests.unit.checkpoint.models import save


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint."""
    run = tmp_path_factory.mktemp("good")
    save(checkpoints_dir(run))
    return run


@pytest.fixture
def spoilt(good: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(good, tmp_path / "run"))
