"""Ranks of a restart are forked from a process that has imported what they need; their launcher knows no difference."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from altup_moe.bench.faults.processes import alive, ranks_of
from altup_moe.launch.standby import AdoptedProcess, Standby, standby, training_words, unwrapped

WRAPPED = [sys.executable, "-I", "-S", "/x/parallel/parent_death.py", "--stop", "7"]
TRAIN = [sys.executable, "-P", "-m", "altup_moe", "train"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([*TRAIN, "quickstart"], ["train", "quickstart"]),
        ([sys.executable, "-m", "altup_moe", "train", "a"], ["train", "a"]),
        ([*WRAPPED, *TRAIN, "quickstart"], ["train", "quickstart"]),
        ([*WRAPPED[:4], "7", *TRAIN, "quickstart"], ["train", "quickstart"]),
        ([*TRAIN[:4], "evaluate", "x"], None),
        ([sys.executable, "-P", "-m", "other", "train"], None),
        ([sys.executable, "train"], None),
        ([sys.executable, "-X", "dev", "-m", "altup_moe", "train"], None),
        (["/usr/bin/python-of-another", "-m", "altup_moe", "train", "a"], None),
        (["true"], None),
        (WRAPPED, None),
    ],
)
def test_a_training_by_this_interpreter_is_known(args: list[str], words: list[str] | None) -> None:
    assert training_words(args) == words


def test_the_script_that_pip_writes_is_known_if_it_is_of_this_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "altup-moe"
    for interpreter, words in ((sys.executable, ["train", "a"]), ("/other/python", None)):
        script.write_text(f"#!{interpreter}\nimport sys\nfrom altup_moe.cli import main\nsys.exit(main())\n")
        assert training_words([str(script), "train", "a"]) == words
    script.unlink()
    assert training_words([str(script), "train", "a"]) is None


def test_the_wrapper_is_taken_off() -> None:
    assert unwrapped([*WRAPPED, "a", "b"]) == (WRAPPED, ["a", "b"])
    assert unwrapped(["a", "b"]) == ([], ["a", "b"])


def test_an_adopted_process_ends_as_popen_says() -> None:
    for code, words in ((3, "import sys; sys.exit(3)"), (-9, "import os; os.kill(os.getpid(), 9)")):
        child = subprocess.Popen([sys.executable, "-S", "-c", words])
        assert AdoptedProcess(child.pid, []).wait(60) == code
        child.returncode = 0
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
    adopted = AdoptedProcess(child.pid, [])
    assert adopted.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        adopted.wait(0.05)
    os.kill(child.pid, signal.SIGKILL)
    assert adopted.wait(60) == -9
    child.returncode = 0


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _template(args: list[str]) -> Standby:
    template = Standby()
    template.begin(args, {**os.environ, "RANK": "0", "OMP_NUM_THREADS": "2"}, wait=0)
    return template


def _start(args: list[str], rank: int) -> Any:
    """A rank's process as torchrun's agent starts it."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    return SubprocessHandler(args[0], tuple(args[1:]), {"RANK": str(rank)}, None, None, rank, None).proc


@pytest.fixture(scope="module")
def template() -> Iterator[Standby]:
    """A template that is ready, begun beside the first rank; its words have room for the commands below."""
    with standby(restarts=True, wait=0) as one:
        first = _start([*TRAIN, "nothing_like_this" + "x" * 300], 0)
        assert isinstance(first, subprocess.Popen)
        assert first.wait(60) == 2
        _until(lambda: one.ready)
        yield one
        pid = one.pid
    assert one.pid is None
    assert not alive(pid)


@pytest.mark.slow
class TestTemplate:
    """One template serves all: it imports torch, which takes seconds."""

    def test_a_forked_rank_has_the_exit_code_of_its_command(self, template: Standby) -> None:
        wrapped = [*WRAPPED[:-1], str(os.getpid()), *TRAIN]
        mistake = _start([*wrapped, "nothing_like_this"], 0)
        assert isinstance(mistake, AdoptedProcess)
        assert mistake.wait(60) == 2
        assert template.ready

    def test_what_is_no_training_is_started_as_ever(self, template: Standby) -> None:
        other = _start(["true"], 0)
        assert isinstance(other, subprocess.Popen)
        assert other.wait(60) == 0

    def test_a_forked_rank_is_shown_killed_and_grouped_as_any_other(self, template: Standby, tmp_path: Path) -> None:
        # A FIFO as its configuration: it waits there for ever.
        os.mkfifo(tmp_path / "run.yaml")
        rank = _start([*TRAIN, str(tmp_path / "run.yaml")], 5)
        assert isinstance(rank, AdoptedProcess)
        _until(lambda: ranks_of(tmp_path / "run.yaml"))
        assert ranks_of(tmp_path / "run.yaml") == {5: rank.pid}
        assert os.getpgid(rank.pid) == os.getsid(rank.pid) == rank.pid
        assert int(Path(f"/proc/{rank.pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
        assert len(os.listdir(f"/proc/{template.pid}/task")) == 1
        os.killpg(rank.pid, signal.SIGTERM)
        assert rank.wait(60) in (-signal.SIGTERM, 128 + signal.SIGTERM)

    def test_ctrl_c_ends_a_template_without_a_word(self, capfd: pytest.CaptureFixture[str]) -> None:
        one = _template([*TRAIN, "x"])
        _until(lambda: one.ready)
        assert one.pid is not None
        os.kill(one.pid, signal.SIGINT)
        ended = os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert (ended.si_code, ended.si_status) == (os.CLD_KILLED, signal.SIGINT)
        one.end()
        assert capfd.readouterr() == ("", "")

    def test_a_template_that_has_died_starts_nothing(self) -> None:
        one = _template([*TRAIN, "x"])
        assert one.fork([*TRAIN, "x"], {}) is None  # it is not ready
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert one.fork([*TRAIN, "x"], {}) is None
        assert one.pid is None
