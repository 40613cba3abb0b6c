"""Small files are written whole, and what is no file stays what it is."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from altup_moe.config.files import write_bytes


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As /dev/null and /dev/stdout are: as root a rename would replace them for the whole machine."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)  # noqa: B023
        reader.start()
        write_bytes(path, b"content")
        if not stat.S_ISFIFO(path.stat().st_mode):  # it was replaced, and nothing would end the reader
            pytest.fail(f"{path} is no pipe any more")
        reader.join(10)
        assert read == [b"content"]
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


@pytest.mark.parametrize("path", ["", "/", "."])
def test_a_directory_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(IsADirectoryError) as error:
        write_bytes(Path(path), b"")
    assert error.value.filename == str(Path(path))
