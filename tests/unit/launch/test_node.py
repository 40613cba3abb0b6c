"""The launcher of one node: the ranks' exit codes arrive, also after a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from altup_moe.doctor.network import free_port
from altup_moe.launch import node
from altup_moe.parallel import parent_death
from altup_moe.parallel.death_record import DIRECTORY
from altup_moe.train.stop_signal import TWICE_SECONDS
from tests.processes import started, wait_until

pytestmark = pytest.mark.slow  # torchrun imports torch

NODE = Path(__file__).parents[3] / "altup_moe" / "launch" / "netlab_node.py"


def start(script: str, logs: Path) -> subprocess.Popen[bytes]:
    """Two ranks of a shell script under the launcher."""
    arguments = ["--standalone", "--nproc-per-node", "2", "--log-dir", str(logs), "--no-python", "sh", "-c", script]
    return subprocess.Popen([sys.executable, "-P", str(NODE), *arguments], stderr=subprocess.PIPE)


def test_the_exit_code_is_the_failing_ranks(tmp_path: Path) -> None:
    with start("if [ $RANK = 1 ]; then exit 7; fi; exec sleep 60", tmp_path) as launched:
        assert b"rank 1 ended with exit code 7" in launched.communicate(timeout=60)[1]
        assert launched.returncode == 7


def test_a_signal_lets_every_rank_finish_and_exit_with_its_code(tmp_path: Path) -> None:
    script = (
        f"trap 'stop=1' TERM; touch {tmp_path}/$RANK; while [ -z $stop ]; do sleep 0.1; done;"
        f" if [ $RANK = 1 ]; then sleep 1; touch {tmp_path}/saved; fi; exit 75"
    )
    with start(script, tmp_path / "logs") as launched:
        give_up = time.monotonic() + 60
        while not all((tmp_path / rank).exists() for rank in "01") and time.monotonic() < give_up:
            time.sleep(0.05)
        launched.send_signal(signal.SIGTERM)
        launched.communicate(timeout=60)
        assert launched.returncode == 75
    assert (tmp_path / "saved").exists()


HOLDER = """
import ctypes, os, subprocess, sys, threading, time
subprocess.Popen([sys.executable, sys.argv[1], "--stop", str(os.getpid()), *sys.argv[3:]])

def last():  # it ends a second after the main thread
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.05)
    time.sleep(1.0)
    os._exit(0)

threading.Thread(target=last).start()
while not os.path.exists(sys.argv[2]):
    time.sleep(0.05)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_node_ends_with_netlab_whose_threads_end_one_by_one(tmp_path: Path) -> None:
    """The kernel's SIGTERM comes with netlab's main thread; netlab is the node's parent a second longer.

    The other node's rank goes on, so that torchrun's barrier at the end would wait for it.
    """
    script = f"trap 'exit 0' TERM; touch {tmp_path}/$RANK; while :; do sleep 0.1; done"
    env = {**os.environ, DIRECTORY: str(tmp_path)}
    port = str(free_port())

    def words(number: int) -> list[str]:
        meeting = ["--master-addr", "127.0.0.1", "--master-port", port, "--local-addr", "127.0.0.1"]
        place = ["--nnodes", "2", "--node-rank", str(number), *meeting, "--log-dir", str(tmp_path / f"logs{number}")]
        return [sys.executable, "-P", str(NODE), *place, "--no-python", "sh", "-c", script]

    holder = [sys.executable, "-c", HOLDER, parent_death.__file__, str(tmp_path / "end"), *words(1)]
    with started(words(0), env=env), started(holder, env=env, stdout=subprocess.PIPE) as netlab:
        wait_until(lambda: all((tmp_path / rank).exists() for rank in "01"), "the ranks", 60)
        (tmp_path / "end").touch()
        assert netlab.stdout is not None
        netlab.communicate(timeout=60)  # its output ends with the node and the rank, which hold it too


def test_words_reach_the_ranks_as_they_are(tmp_path: Path) -> None:
    """torchrun fills in `$local_rank` and makes `$$` one `$`."""
    words = ["$local_rank", "$$", "${local_rank}", "a b", "$(x)", "line\nline", ""]
    script = f"import sys; open(r'{tmp_path}/words', 'w').write(repr(sys.argv[1:]))"
    arguments = ["--standalone", "--nproc-per-node", "1", "--log-dir", str(tmp_path / "logs"), "--no-python"]
    command = [sys.executable, "-P", str(NODE), *arguments, sys.executable, "-c", script, *words]
    assert subprocess.run(command, timeout=60).returncode == 0
    assert (tmp_path / "words").read_text() == repr(words)


def test_of_ranks_that_were_interrupted_nothing_more_is_said(tmp_path: Path) -> None:
    """Neither torchrun's lines nor the launcher's: rank 0 has said it."""
    script = f"trap 'exit 130' INT; touch {tmp_path}/$RANK; while :; do sleep 0.1; done"
    with start(script, tmp_path / "logs") as launched:
        give_up = time.monotonic() + 60
        while not all((tmp_path / rank).exists() for rank in "01") and time.monotonic() < give_up:
            time.sleep(0.05)
        launched.send_signal(signal.SIGINT)
        assert launched.communicate(timeout=60)[1] == b""
        assert launched.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_to_ranks_that_have_ended_is_the_same_request(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    now, ranks = [100.0], [[2**22 + 1]]  # no process has this id
    monkeypatch.setattr(node, "_received", [])
    monkeypatch.setattr(node, "_forwarded", [])
    monkeypatch.setattr(node, "child_processes", lambda parent: ranks[0])
    monkeypatch.setattr(node.time, "monotonic", lambda: now[0])
    node.forward_signal(number, None)
    ranks[0] = []
    now[0] += TWICE_SECONDS - 0.1
    node.forward_signal(number, None)
    assert capfd.readouterr() == ("", "")
    now[0] += 0.1
    with pytest.raises(SystemExit) as stopped:
        node.forward_signal(number, None)
    assert stopped.value.code == 128 + number


def test_no_signal_goes_to_the_process_that_forks_the_ranks_of_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end with a traceback; and between two starts it alone would hear a Ctrl-C, and the ranks start again."""
    told: list[int] = []
    template = type("Template", (), {"pid": 2**22 + 2})
    monkeypatch.setattr(node, "_received", [])
    monkeypatch.setattr(node, "_forwarded", [])
    monkeypatch.setattr(node, "_template", template)
    monkeypatch.setattr(node, "send", lambda pid, number: told.append(pid))
    monkeypatch.setattr(node, "child_processes", lambda parent: [2**22 + 1, template.pid])
    node.forward_signal(signal.SIGINT, None)
    assert told == [2**22 + 1]
    monkeypatch.setattr(node, "_forwarded", [])
    monkeypatch.setattr(node, "child_processes", lambda parent: [template.pid])
    with pytest.raises(SystemExit):
        node.forward_signal(signal.SIGTERM, None)
    assert told == [2**22 + 1]


def test_a_good_end_has_no_traceback_of_the_barrier_behind_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the store whose host has ended; torchrun's own words, by its own code."""
    from torch.distributed.elastic.agent.server import api

    node._quieten_torchrun()
    agent = type("Agent", (), {"_worker_group": SimpleNamespace(state="", group_world_size=2), "_store": None})()
    agent._exit_barrier_timeout = 1
    # It is torch's to say whether the root logger, which caplog hears as well, gets these records.
    monkeypatch.setattr(api.logger, "handlers", [caplog.handler])
    monkeypatch.setattr(api.logger, "propagate", False)
    api.SimpleElasticAgent._exit_barrier(agent)
    api.logger.error("another")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["another"]


def test_twice_is_as_long_as_for_a_rank() -> None:
    assert node.TWICE_SECONDS == TWICE_SECONDS


def test_torchrun_itself_repeats_no_mistake(tmp_path: Path) -> None:
    with start("exit 2", tmp_path) as launched:
        said = launched.communicate(timeout=60)[1].decode()
        assert said.splitlines() == [said.strip()]
        assert said.endswith("ended with exit code 2\n")
        assert launched.returncode == 2
