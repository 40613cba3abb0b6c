"""The parent of a rank under DeepSpeed's launcher: exit codes, deaths, and the end of the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from altup_moe.launch import deepspeed, pdsh
from altup_moe.launch.common import LaunchError
from altup_moe.launch.hosts import Host
from altup_moe.launch.node import FORWARDED, HEAR_SECONDS, wait_and_hear
from altup_moe.launch.packed import pack
from altup_moe.launch.rank_parent import MARK, RankParent, tell
from altup_moe.parallel.death_record import Death
from tests.processes import started, wait_until

SCRIPT = Path(deepspeed.__file__).with_name("packed.py")

pytestmark = pytest.mark.usefixtures("signals_are_heard")


@contextmanager
def rank(script: str, token: str, trap: str = ":") -> Iterator[subprocess.Popen]:
    """Rank 3 as DeepSpeed starts it, once it hears signals (`trap`) and has printed its first line."""
    words = [sys.executable, "-u", str(SCRIPT), pack(["sh", "-c", f"{trap}; echo ready; {script}"]), token]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(words, env={**os.environ, "RANK": "3"}, **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process


def ended(process: subprocess.Popen) -> tuple[int, bytes, bytes]:
    """Exit code and output; its input stays open (`communicate` closes it)."""
    return process.wait(60), process.stdout.read(), process.stderr.read()


def death(err: bytes) -> Death:
    """The line for the launcher."""
    (line,) = [line for line in err.decode().splitlines() if line.startswith(MARK)]
    return Death(**json.loads(line.removeprefix(MARK)))


def test_a_rank_that_fails_by_itself_leaves_a_line_and_its_exit_code() -> None:
    with rank("sleep 0.1; echo out; echo err >&2; kill -9 $$", "t1") as process:
        code, out, err = ended(process)
    assert (code, out, err.splitlines()[0]) == (137, b"out\n", b"err")
    told = death(err)
    assert (told.rank, told.code, told.told) == (3, 137, False)


SAVES = "trap 'sleep 0.2; echo saved; exit 75' TERM USR1"
UNTIL_TOLD = "while :; do sleep 0.1; done"


def test_a_rank_saves_when_its_launcher_has_gone_and_nobody_reads_its_output(tmp_path: Path) -> None:
    trap = SAVES.replace("echo saved", f"echo saved; touch {tmp_path}/saved")
    with rank(UNTIL_TOLD, "t2", trap) as process:
        for pipe in (process.stdout, process.stderr, process.stdin):
            pipe.close()
        assert process.wait(60) == 75
    assert (tmp_path / "saved").exists()


def test_signals_reach_the_ranks_of_one_launch_alone() -> None:
    with rank(UNTIL_TOLD, "t3", SAVES) as process, rank(UNTIL_TOLD, "t4", SAVES) as other:
        assert tell("t3", signal.SIGTERM, SCRIPT.name)
        code, out, err = ended(process)
        assert (code, out, death(err).told) == (75, b"saved\n", True)
        assert other.poll() is None
    assert not tell("t3", signal.SIGTERM, SCRIPT.name)


def test_a_second_signal_ends_a_rank_that_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    with rank(UNTIL_TOLD, "t5", "trap 'echo told' INT") as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"told\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.2)  # a repetition within 2 s would be the same request
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 137


def test_a_signal_before_the_start_has_returned_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the rank runs before its parent has the process that it started. SIGINT stays SIGINT."""
    before = {number: signal.getsignal(number) for number in FORWARDED}
    start = subprocess.Popen
    told = (
        f"trap 'echo told >> {tmp_path}/told; exit 75' INT; trap 'exit 76' TERM; touch {tmp_path}/ready; {UNTIL_TOLD}"
    )

    def slow_start(*words: object, **options: object) -> object:
        process = start(*words, **options)  # type: ignore[call-overload]
        wait_until(lambda: (tmp_path / "ready").exists(), "the rank")
        os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr("altup_moe.launch.rank_parent.subprocess.Popen", slow_start)
    monkeypatch.setattr(RankParent, "_await_launcher", lambda self: None)
    try:
        assert RankParent(["sh", "-c", told], dict(os.environ)).run() == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (tmp_path / "told").read_text() == "told\n"


def test_a_wait_ends_often_enough_to_hear_signals() -> None:
    bounds: list[float] = []

    class Running:
        def wait(self, seconds: float) -> int:
            bounds.append(seconds)
            if len(bounds) < 3:
                raise subprocess.TimeoutExpired("rank", seconds)
            return 3

    assert wait_and_hear(Running()) == 3  # type: ignore[arg-type]
    assert bounds == [HEAR_SECONDS] * 3


PDSH = [
    (0, "", None),
    (31, "pdsh@a: n1: ssh exited with exit code 31\n", "host n1: no directory /srv"),
    (32, "pdsh@a: n1: ssh exited with exit code 32\n", "host n1: no .* an installation at the same path would fit"),
    (
        255,
        "n1: ssh: Could not resolve hostname n1\npdsh@a: n1: ssh exited with exit code 255\n",
        r"host n1: cannot be reached \(ssh: Could not resolve hostname n1\); try ssh n1 true",
    ),
    (1, "pdsh: bad module\n", "hosts: pdsh: pdsh: bad module"),
]


@pytest.mark.parametrize(("code", "err", "says"), PDSH)
def test_a_host_that_cannot_run_a_rank_is_named(
    code: int, err: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdsh, "run_on", lambda hosts, command: SimpleNamespace(returncode=code, stderr=err))
    if says is None:
        pdsh.check_hosts([Host("n1", 1)], "/srv", "/srv/packed.py")
        return
    with pytest.raises(LaunchError, match=says) as caught:
        pdsh.check_hosts([Host("n1", 1)], "/srv", "/srv/packed.py")
    assert "\n" not in str(caught.value)
