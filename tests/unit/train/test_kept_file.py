"""A file that a failing disk cannot spoil: records whole and in order, said once, bounded."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from altup_moe.train import kept_file
from altup_moe.train.kept_file import KeptFile
from altup_moe.train.log_files import JsonLines
from tests.faults.disks import file_size_limit
from tests.unit.train.records import record

LINES = [f"line {number:04d} ".encode() + b"x" * 20 + b"\n" for number in range(40)]


def test_a_line_written_in_part_is_cut_back_and_then_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The kernel itself writes a part: the limit lies inside the fourth line."""
    path = tmp_path / "lines"
    file = KeptFile(path)
    with file_size_limit(3 * len(LINES[0]) + 7):
        for number, line in enumerate(LINES[:8]):
            file.write(line)
            assert path.read_bytes() == b"".join(LINES[: min(number + 1, 3)])
    assert capsys.readouterr().err == (f"{path}: File too large; training goes on, its lines wait in memory for room\n")
    file.write(LINES[8])
    assert path.read_bytes() == b"".join(LINES[:9])
    assert capsys.readouterr().err == f"{path}: written again, with the 6 line(s) that waited\n"
    with file_size_limit(9 * len(LINES[0])):
        file.write(LINES[9])
    file.write(LINES[10])
    file.close()
    assert path.read_bytes() == b"".join(LINES[:11])
    assert capsys.readouterr().err == "", "said once"


def test_what_could_not_be_cut_back_is_cut_when_the_disk_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    file = KeptFile(path)
    file.write(LINES[0])

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        with file_size_limit(len(LINES[0]) + 5):
            file.write(LINES[1])
        assert len(path.read_bytes()) == len(LINES[0]) + 5
        file.write(LINES[2])
        assert len(path.read_bytes()) == len(LINES[0]) + 5, "nothing may follow the damaged line"
    file.write(LINES[3])
    file.close()
    assert path.read_bytes() == b"".join(LINES[:4])


def test_what_waits_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_file, "BOUND_BYTES", 3 * len(LINES[0]))
    path = tmp_path / "missing" / "lines"
    file = KeptFile(path)
    for line in LINES[:5]:
        file.write(line)
    path.parent.mkdir()
    file.write(LINES[5])
    file.write(LINES[6])
    # The first ones are kept: the file has no gap but one.
    assert path.read_bytes() == b"".join([*LINES[:3], LINES[6]])
    file.close()
    said = capsys.readouterr().err.splitlines()
    assert [line.removeprefix(f"{path}: ") for line in said] == [
        "No such file or directory; training goes on, its lines wait in memory for room",
        "0 MiB wait to be written; later lines are lost until there is room",
        "written again, with the 3 line(s) that waited",
        "3 line(s) were not written (no room before)",
    ]


def test_lines_at_the_end_that_found_no_room_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = KeptFile(tmp_path / "lines")
    with file_size_limit(len(LINES[0])):
        for line in LINES[:4]:
            file.write(line)
        file.close()
    said = capsys.readouterr().err.splitlines()[1:]
    assert said == [f"{tmp_path}/lines: 3 line(s) were not written (File too large)"]


@pytest.mark.parametrize("limit", [0, 100, 800])
def test_a_resumed_file_that_cannot_be_cut_yet_loses_nothing(
    limit: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines of steps done again find no room beside: both files stay as they were until they do."""
    path, beside = tmp_path / "metrics.jsonl", tmp_path / "metrics.removed.jsonl"
    logger = JsonLines(path, 1)
    for step in range(1, 9):
        logger.log(record(step, loss=1.0))
    logger.close()
    whole = path.read_bytes().splitlines(keepends=True)
    # A blank line makes the rest no beginning of the file: it has to be written anew.
    path.write_bytes(b"".join([whole[0], *([b"\n"] if limit else []), *whole[1:]]))
    before = path.read_bytes()
    assert len(before) > limit
    with file_size_limit(limit):
        logger = JsonLines(path, 4)
        logger.log(record(4, loss=2.0))
        assert path.read_bytes() == before
        assert not beside.exists() or beside.read_bytes() == b""
        assert not list(tmp_path.glob(".metrics*"))
    logger.log(record(5, loss=2.0))
    logger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:3] == whole[:3]
    assert len(lines) == 5
    assert beside.read_bytes() == b"".join(whole[3:])
    assert capsys.readouterr().err.count("training goes on") == 1
