"""Locks: one holder at a time, and none once it is dead."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from altup_moe.config import UserError
from altup_moe.config.locks import LOCK, hold_for_reading, locked_directory, unread

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from altup_moe.config.locks import locked_directory
with locked_directory(Path(sys.argv[1]), "study", "name another"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_refused_in_one_line_that_names_the_holder(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "directory"
    with locked_directory(directory, "study", "name another --dir"):
        with pytest.raises(UserError) as error, locked_directory(directory, "study", "name another --dir"):
            pass
        holder = f"process {os.getpid()} on "
        assert re.fullmatch(
            rf"{directory}: another study runs here \({holder}\S*\); wait for it, or name another --dir",
            str(error.value),
        )
    with locked_directory(directory, "study", "name another --dir"):
        pass
    assert [file.name for file in directory.iterdir()] == [LOCK]


@pytest.mark.slow
def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """Killed with -9: nothing can be tidied up."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with (
                pytest.raises(UserError, match=f"process {process.pid} on"),
                locked_directory(tmp_path, "study", "name another"),
            ):
                pass
        finally:
            process.send_signal(signal.SIGKILL)
    with locked_directory(tmp_path, "study", "name another"):
        pass


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Not a directory"), locked_directory(tmp_path / "file" / "run", "run", "x"):
        pass


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with locked_directory(tmp_path, "study", "x"):
        assert "no locks (Operation not supported)" in capsys.readouterr().err
    file = tmp_path / "file"
    file.touch()
    assert hold_for_reading(file) is None
    assert unread(file)


def test_readers_do_not_exclude_each_other_and_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert unread(file)
    first, second = hold_for_reading(file), hold_for_reading(file)
    assert first is not None
    assert second is not None
    os.close(first)
    assert not unread(file)
    os.close(second)
    assert unread(file)


def test_a_reader_waits_for_no_fifo(tmp_path: Path) -> None:
    """What stands in a checkpoint's place may be anything; its own checks say what is wrong."""
    os.mkfifo(tmp_path / "fifo")
    held = hold_for_reading(tmp_path / "fifo")
    if held is not None:
        os.close(held)
    (tmp_path / "link").symlink_to(tmp_path / "none")
    assert hold_for_reading(tmp_path / "link") is None
