"""Which rank failed first, and what is said of the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from altup_moe.launch.deaths import in_order, joined, report, same_failure
from altup_moe.launch.rank_watch import RankWatch
from altup_moe.parallel import death_record, parent_death
from altup_moe.parallel.death_record import Death

GONE = "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5321"
BOOM = "ValueError: boom"


def death(rank: int, time: float, error: str = "", code: int = 1, **more: object) -> Death:
    return Death(rank, time, code, 1000 + rank, error, **more)  # type: ignore[arg-type]


def test_the_first_by_time_of_death() -> None:
    assert [one.rank for one in in_order([death(0, 5.0), death(1, 4.0), death(2, 6.0)])] == [1, 0, 2]


def test_who_lost_a_peer_was_not_first_even_if_a_kill_is_noticed_late() -> None:
    ordered = in_order([death(0, 4.0, GONE), death(1, 4.3, code=137), death(2, 4.1, "x: Connection reset by peer")])
    assert [one.rank for one in ordered] == [1, 0, 2]


def test_who_was_told_to_end_or_has_saved_comes_last() -> None:
    told, saved, failed = death(0, 1.0, told=True, code=143), death(1, 2.0, code=75), death(2, 3.0)
    assert [one.rank for one in in_order([told, saved, failed])] == [2, 1, 0]


def test_a_record_gives_the_time_of_the_error_and_survives_the_signal_that_follows() -> None:
    """Rank 1 raises at 4.0 and takes a second to unload torch; rank 0 fails of that and is gone first."""
    observed = [death(0, 4.5), death(1, 5.0, code=143), death(2, 5.1, code=143)]
    records = [death(0, 4.2, GONE), death(1, 4.0, BOOM, step=9)]
    both = {one.rank: one for one in joined(observed, records, told_at=4.6)}
    assert (both[1].code, both[1].time, both[1].told, both[1].step) == (1, 4.0, False, 9)
    assert (both[0].told, both[2].told) == (False, True)
    assert in_order(both.values())[0].rank == 1


def test_the_first_failure_whole_and_a_line_for_each_other() -> None:
    trace = "Traceback (most recent call last):\n  File ...\nValueError: boom"
    first = death(1, 4.0, BOOM, step=9, trace=trace)
    lines = report("launch", [death(0, 4.2, GONE, trace="Traceback ..."), first, death(2, 5.0, code=143, told=True)])
    assert lines == [
        *trace.splitlines(),
        "launch: rank 1 ended with exit code 1 in step 9: ValueError: boom",
        "launch: rank 0 0.2 s later ended with exit code 1: its peer had gone",
    ]


def test_what_is_said_of_a_kill_of_a_shared_mistake_and_of_another_node() -> None:
    assert report("l", [death(3, 1.0, code=137)]) == [
        "l: rank 3 ended with exit code 137 (killed by signal 9, SIGKILL)"
    ]
    assert len(report("l", [death(0, 1.0, code=2), death(1, 1.1, code=2)], quiet_codes=(2,))) == 1
    (line,) = report("l", [death(2, 1.0, GONE)])
    assert line.endswith("; a rank of another node ended before it")


def test_the_same_failure_is_the_same_step_and_error_but_for_addresses() -> None:
    assert same_failure(death(0, 1.0, BOOM, step=9), death(1, 9.0, BOOM, step=9))
    assert same_failure(death(0, 1.0, GONE, step=9), death(0, 9.0, GONE.replace("5321", "60211"), step=9))
    assert not same_failure(death(0, 1.0, BOOM, step=9), death(0, 9.0, BOOM, step=10))
    assert not same_failure(death(0, 1.0, BOOM, step=9), death(0, 9.0, "ValueError: bang", step=9))
    assert not same_failure(death(0, 1.0, code=137), death(0, 9.0, code=137))  # where nothing is known


def test_a_record_keeps_the_time_at_which_the_error_passed_by_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(death_record.DIRECTORY, str(tmp_path))
    monkeypatch.setenv(parent_death.LAUNCHER_ID, str(os.getpid()))
    monkeypatch.setenv("RANK", "3")
    now = [10.0]
    monkeypatch.setattr(death_record.time, "time", lambda: now[0])
    error = ValueError("boom\nand more")
    assert death_record.leave(error)
    now[0] = 20.0
    outer = RuntimeError("wrapped")
    outer.__cause__ = error
    assert death_record.leave(outer)
    (record,) = death_record.read_all(tmp_path)
    assert (record.rank, record.time, record.error) == (3, 10.0, "RuntimeError: wrapped")
    assert death_record.leave(ValueError("another"))
    assert death_record.read_all(tmp_path)[0].time == 20.0
    monkeypatch.setenv(parent_death.LAUNCHER_ID, str(2**22 + 1))  # no process has this id: nobody would print it
    assert not death_record.leave(error)
    monkeypatch.delenv(death_record.DIRECTORY)  # no launcher of ours: the rank prints it
    assert not death_record.leave(error)


def test_ends_are_noted_in_their_order_and_a_stopped_process_is_not_waited_for() -> None:
    """Rank 1 ends before rank 0; rank 2 is stopped and hears no SIGTERM; rank 3 ends with 77: ranks hang."""
    scripts = [
        "sleep 0.6; exit 3",
        "exit 4",
        "kill -STOP $$; sleep 100",
        "sleep 0.8; exit 77",
        "trap '' TERM; sleep 100",
    ]
    started = [subprocess.Popen(["sh", "-c", script], start_new_session=True) for script in scripts]
    try:
        watch = RankWatch()
        watch.follow({rank: process.pid for rank, process in enumerate(started)})
        give_up = time.monotonic() + 60
        while len(watch.failed) < 3 and time.monotonic() < give_up:
            time.sleep(0.02)
        assert [(one.rank, one.code) for one in in_order(watch.failed)] == [(1, 4), (0, 3), (3, 77)]
        begin = time.monotonic()
        watch.end_others()
        assert time.monotonic() - begin < 25  # not 30 s, as without the 77
        assert [process.wait(20) for process in started] == [3, 4, -signal.SIGKILL, 77, -signal.SIGKILL]
        assert watch.deaths[4].time - watch.deaths[2].time > 0.5  # seconds; the one that is stopped was not waited for
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_process_that_ignores_the_request_is_killed_after_its_parent(tmp_path: Path) -> None:
    """The parent, which is killed with -9, starts a rank that hears no SIGTERM."""
    rank = (
        "import os, signal, sys, time; from altup_moe.parallel.parent_death import *;"
        "signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1] + '/told', 'w'));"
        "stop_with_parent(os.getppid()); end_after_parent(os.getppid(), 0.3); open(sys.argv[1] + '/ready', 'w');"
        "[time.sleep(0.1) for _ in range(1000)]"
    )
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}, {str(tmp_path)!r}])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    with parent:
        give_up = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        parent.kill()
        assert parent.stdout is not None
        parent.stdout.read()  # ends when the rank, which holds the other end, has ended
    assert (tmp_path / "told").exists()


@pytest.mark.usefixtures("signals_are_heard")
def test_a_rank_is_asked_to_stop_when_a_launcher_further_up_has_been_killed(tmp_path: Path) -> None:
    """Its parent, DeepSpeed's launcher say, lives on. The bound holds for it as well."""
    rank = (
        "import os, signal, sys, time; from altup_moe.parallel.parent_death import *;"
        "signal.signal(signal.SIGUSR1, lambda *_: open(sys.argv[1] + '/told', 'w'));"
        "end_after_parent(os.getppid(), 0.3, launcher_process()); open(sys.argv[1] + '/ready', 'w');"
        "[time.sleep(0.1) for _ in range(1000)]"
    )
    with subprocess.Popen(["sleep", "100"]) as launcher:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), parent_death.LAUNCHER_ID: str(launcher.pid)}
        with subprocess.Popen([sys.executable, "-c", rank, str(tmp_path)], env=env) as process:
            give_up = time.monotonic() + 60
            while not (tmp_path / "ready").exists() and time.monotonic() < give_up:
                time.sleep(0.02)
            assert process.poll() is None
            launcher.kill()
            launcher.wait()
            assert process.wait(60) == -signal.SIGKILL
    assert (tmp_path / "told").exists()
