"""A watcher without its rank: what it makes of the files that the other watchers leave."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.config.exit_codes import EXIT_HUNG
from altup_moe.parallel.watchdog import ring
from altup_moe.parallel.watchdog.watcher import TRACKING, TRAINING, Orders, Watcher


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """That of rank 1 of two, which this process stands for."""
    _, memory = ring.new_memory(shared=True)
    assert memory is not None
    ours, theirs = socket.socketpair()
    with ours, (tmp_path / "stacks").open("w+") as stacks:
        yield Watcher(
            Orders(1, 2, os.getpid(), 3.0, str(tmp_path), memory, stacks.fileno(), theirs.detach(), EXIT_HUNG)
        )
    os.close(memory)


def test_a_rank_may_wait_long_for_a_trackers_server(watcher: Watcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B and MLflow try again for minutes where a server does not answer, also after the last step; not for ever."""
    monkeypatch.setattr(watcher.work, "goes_on", lambda now: False)
    header = ring.read_header(watcher.memory)
    found = []
    for phase in (TRACKING, TRAINING):
        header = replace(header, phase=phase, longest_step=0.1)
        found.append([watcher.excused(header, quiet, 100.0) for quiet in (4.0, 29.0, 31.0)])
    assert found == [[True, True, False], [False, False, False]]


@pytest.mark.parametrize(("began", "quiet", "hangs"), [(0.0, 29.0, False), (0.0, 31.0, True), (1.0, 4.0, True)])
def test_before_the_first_step_ranks_may_take_half_a_minute(
    watcher: Watcher, monkeypatch: pytest.MonkeyPatch, began: float, quiet: float, hangs: bool
) -> None:
    """They meet then, and try again every few seconds."""
    told: list[float] = []
    header = replace(ring.read_header(watcher.memory), step_began=began)
    monkeypatch.setattr(ring, "read_header", lambda _: header)
    monkeypatch.setattr(watcher, "excused", lambda *_: False)
    monkeypatch.setattr(watcher, "judge", lambda *_: False)
    monkeypatch.setattr(watcher, "expire", told.append)
    watcher.look(100.0)
    watcher.look(100.0 + quiet)
    assert bool(told) == hangs


def test_a_report_is_found_when_its_writer_has_gone_already(
    watcher: Watcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status lives only until its rank has ended: less than a turn of waiting."""
    ends: list[str] = []
    monkeypatch.setattr(watcher, "end", ends.append)
    monkeypatch.setattr(watcher, "tell_stacks", lambda: None)
    report = tmp_path / "hang_20260101-000000.txt"
    report.write_text("altup-moe: hang after step 3\n  rank 0: in lock\n\nPython stacks\n")
    later = time.time() + 1
    os.utime(report, (later, later))
    assert watcher.wait_for_report(0)
    assert ends == ["altup-moe: hang after step 3\n  rank 0: in lock"]
    assert sorted(tmp_path.glob("hang_*")) == [report]
