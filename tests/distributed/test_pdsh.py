"""`altup-moe launch deepspeed` by a real pdsh over real sshds, on the two nodes of `tests.two_nodes`."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from altup_moe.launch.node import TWICE_SECONDS, child_processes
from tests.distributed.test_launchers import ROOT, command, losses
from tests.processes import wait_until
from tests.two_nodes import NODES, TwoNodes, nodes_for_a_while, unavailable

MISSING = [name for name in ("pdsh", "ssh", "ssh-keygen", "/usr/sbin/sshd") if shutil.which(name) is None]
REASON = f"not found: {', '.join(MISSING)} (Debian: pdsh openssh-server openssh-client)" if MISSING else unavailable()
if importlib.util.find_spec("deepspeed") is None:
    REASON = "deepspeed is not installed"
SECONDS = 400
SSHD = """HostKey {0}/host
AuthorizedKeysFile {0}/key.pub
StrictModes no
UsePAM no
PidFile none
PermitRootLogin yes
PasswordAuthentication no
"""
SSH = """Host *
  IdentityFile {0}/key
  UserKnownHostsFile {0}/known
  StrictHostKeyChecking no
  LogLevel ERROR
"""

pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.usefixtures("signals_are_heard"),
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a busy machine; each is done in seconds,
]


class Hosts:
    """The nodes with an sshd each, and runs that are started on n0."""

    def __init__(self, nodes: TwoNodes) -> None:
        self.nodes, self.directory = nodes, nodes.directory

    def start_sshds(self) -> None:
        for name in ("key", "host"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.directory / name)]
            subprocess.run(words, check=True, timeout=60)
        (self.directory / "sshd_config").write_text(SSHD.format(self.directory))
        (self.directory / "ssh_config").write_text(SSH.format(self.directory))
        self.nodes.run("mkdir", "-p", "/run/sshd")
        for node in NODES:
            self.nodes.run("/usr/sbin/sshd", "-f", str(self.directory / "sshd_config"), node=node)
        true = ["pdsh", "-S", "-R", "ssh", "-w", "n0,n1", "true"]
        wait_until(lambda: "pdsh" not in self.nodes.run(*true, node="n0", env=self.environment(), check=False), "sshd")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "PDSH_SSH_ARGS_APPEND": f"-F {self.directory}/ssh_config", "PYTHONPATH": str(ROOT),
            "TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    def launch(self, words: list[str], *names: str) -> subprocess.Popen[str]:
        """Start a command on one rank of each host, n0 and n1 unless others are named."""
        file = self.directory / "hostfile"
        file.write_text("".join(f"{name} slots=1\n" for name in names or NODES))
        launcher = [sys.executable, "-m", "altup_moe.cli", "launch", "deepspeed", "--hostfile", str(file), "--"]
        return self.nodes.start(*launcher, *words, node="n0", env=self.environment())

    def file(self, name: str) -> str:
        path = self.directory / name
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with nodes_for_a_while("altup-ssh-") as nodes:
        hosts = Hosts(nodes)
        hosts.start_sshds()
        yield hosts


def launcher_of(process: subprocess.Popen[str]) -> int:
    """The launcher itself: nsenter is before it."""
    return int(wait_until(lambda: child_processes(process.pid), "the launcher")[0])


def left(hosts: Hosts) -> list[str]:
    """Command lines of what runs on the nodes and belongs to a launch."""
    lines = hosts.nodes.run("ps", "-eo", "args").splitlines()
    return [line for line in lines if "deepspeed" in line or "packed.py" in line or "pdsh" in line]


def ranks_in_place(name: str, told: str) -> list[str]:
    """A rank that writes a line to the file `name` when it starts, and what it does when it is told to stop."""
    return ["sh", "-c", f"trap '{told}' INT TERM USR1; echo start >> {name}; while :; do sleep 0.1; done"]


@pytest.mark.long
def test_two_hosts_train_and_a_signal_saves(hosts: Hosts) -> None:
    run_dir, cache = hosts.directory / "run", hosts.directory / "cache"
    words = command(run_dir, cache, **{"train.steps": 100_000})
    process = hosts.launch(words)
    wait_until(lambda: hosts.file("run/metrics.jsonl"), "a step")
    os.kill(launcher_of(process), signal.SIGTERM)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 75, said
    assert "stopped by a signal after step" in said
    assert not left(hosts)
    reached = len(losses(run_dir))
    again = hosts.launch([*words, "--train.stop_after", str(reached + 5)])
    said = again.communicate(timeout=SECONDS)[0]
    assert again.returncode == 0, said
    assert "2 rank(s)" in said
    assert len(losses(run_dir)) == reached + 5


def test_the_rank_that_failed_first_is_named_with_its_exit_code(hosts: Hosts) -> None:
    fails = "touch failed; exit 7"
    follows = "while [ ! -e failed ]; do sleep 0.1; done; sleep 1; exit 9"
    process = hosts.launch(["sh", "-c", f'if [ "$RANK" = 1 ]; then {fails}; else {follows}; fi'])
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 7, said
    lines = [line for line in said.splitlines() if line.startswith("altup-moe launch deepspeed: rank")]
    assert lines[0] == "altup-moe launch deepspeed: rank 1 ended with exit code 7"
    assert lines[1:] == [line for line in lines if "rank 0" in line and line.endswith("ended with exit code 9")]
    assert "altup-moe-death" not in said


@pytest.mark.long
def test_a_second_ctrl_c_ends_what_does_not_stop(hosts: Hosts) -> None:
    process = hosts.launch(ranks_in_place("twice", "echo told >> twice"))
    wait_until(lambda: hosts.file("twice").count("start") == 2, "both ranks")
    os.kill(launcher_of(process), signal.SIGINT)
    wait_until(lambda: hosts.file("twice").count("told") == 2, "both ranks hear it")
    time.sleep(TWICE_SECONDS)  # sooner it would be the same request
    assert process.poll() is None
    os.kill(launcher_of(process), signal.SIGINT)
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 137, said
    assert hosts.file("twice").count("told") >= 4
    assert not left(hosts)


@pytest.mark.long
def test_ranks_save_and_end_when_their_launcher_is_killed(hosts: Hosts) -> None:
    process = hosts.launch(ranks_in_place("killed", "echo saved >> killed; exit 75"))
    wait_until(lambda: hosts.file("killed").count("start") == 2, "both ranks")
    os.kill(launcher_of(process), signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    wait_until(lambda: hosts.file("killed").count("saved") == 2, "both ranks save")
    wait_until(lambda: not left(hosts), "no process is left")


def test_hosts_that_cannot_run_a_rank_are_named_in_one_line(hosts: Hosts) -> None:
    process = hosts.launch(["true"], "n0", "n7")
    said = process.communicate(timeout=SECONDS)[0]
    assert process.returncode == 2
    (line,) = [line for line in said.splitlines() if "altup-moe: error: " in line]
    assert line.startswith("altup-moe: error: host n7: cannot be reached (")
    assert line.endswith("; try ssh n7 true, or start each host with --no-ssh")
    assert said.strip() == line
