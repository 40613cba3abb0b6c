"""Directories that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.config import UserError
from altup_moe.data.files import new_directory


def test_a_run_that_begins_in_the_directory_meanwhile_keeps_it(tmp_path: Path) -> None:
    """An import takes minutes; a training started into its place is not overwritten, and the import says so."""
    target = tmp_path / "run"

    def make() -> None:
        with new_directory(target) as made:
            (made / "config.yaml").write_text("mine")
            target.mkdir()
            (target / "lock").write_text("theirs")

    with pytest.raises(UserError, match="run: another process has made it meanwhile"):
        make()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in target.iterdir()] == ["lock"]
