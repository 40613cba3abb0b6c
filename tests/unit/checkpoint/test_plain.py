"""Files that somebody else may have touched: only a plain file in its own place is opened."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from altup_moe.checkpoint.plain import open_plain, read_plain
from altup_moe.config import DataError
from tests.processes import open_below


def test_a_link_a_pipe_a_directory_and_nothing_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"bytes")
    assert read_plain(good) == b"bytes"
    (tmp_path / "link").symlink_to(good)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("link", "pipe", "directory", "nothing"):
        with pytest.raises(DataError) as error:
            open_plain(tmp_path / name)
        assert error.value.file == str(tmp_path / name)
    assert open_below(tmp_path) == []
