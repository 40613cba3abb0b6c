"""The launchers without a run: what they would start, what the user can get wrong, and how signals pass."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.cli import main
from altup_moe.launch import deepspeed, torchrun
from altup_moe.launch.common import LaunchError, set_defaults
from altup_moe.launch.deepspeed import check_remote_shell
from altup_moe.launch.node import told_already
from altup_moe.launch.packed import pack, unpack
from tests.processes import started

ROOT = Path(__file__).parents[3]
AWKWARD = ["a b", "it's", '"', "$(touch pwned)", "`id`", "line\nline", "", "--", "-x", "*", "\\", "é"]

pytestmark = pytest.mark.usefixtures("signals_are_heard")
VARIABLES = (
    "NNODES",
    "NODE_RANK",
    "RANKS_PER_NODE",
    "MAX_RESTARTS",
    "RDZV_TIMEOUT",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_STEP_ID",
)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without variables that are defaults of flags, and put back what a launcher sets."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "DS_BUILD_OPS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


@pytest.fixture
def fake_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `deepspeed` in PATH: a runner that starts a launcher that starts one rank, which saves at SIGTERM."""
    tools = tmp_path / "tools"
    tools.mkdir()
    rank = f"trap 'touch {tmp_path}/saved; exit 75' TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done"
    (tools / "rank").write_text(rank)
    (tools / "launch").write_text(f"sh {tools}/rank; exit $?")
    (tools / "deepspeed").write_text(f"#!/bin/sh\nsh {tools}/launch; exit $?\n")
    (tools / "deepspeed").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tools


def dry_run(capsys: pytest.CaptureFixture[str], launcher: str, *argv: str) -> list[str]:
    """The words that a launcher would run."""
    cut = argv.index("--")
    assert main(["launch", launcher, *argv[:cut], "--dry-run", *argv[cut:]]) == 0
    return shlex.split(capsys.readouterr().out)


def test_torchrun_passes_a_command_on_word_by_word(capsys: pytest.CaptureFixture[str]) -> None:
    words = dry_run(capsys, "torchrun", "--ranks-per-node", "2", "--", "true", *AWKWARD)
    assert words[words.index("--no-python") + 2 :] == AWKWARD
    assert words[:6] == ["torchrun", "--nnodes", "1", "--nproc-per-node", "2", "--max-restarts"]
    assert "--local-addr 127.0.0.1 --rdzv-endpoint 127.0.0.1:0 --rdzv-conf is_host=1" in " ".join(words)


def test_many_nodes_meet_by_number_or_by_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--nodes", "2", "--ranks-per-node", "1", "--rdzv", "127.0.0.1:29500"]
    numbered = dry_run(capsys, "torchrun", *size, "--node-rank", "1", "--", "true")
    assert "--node-rank 1 --master-addr 127.0.0.1 --master-port 29500" in " ".join(numbered)
    free = dry_run(capsys, "torchrun", *size, "--", "true")
    meeting = "--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:29500 --rdzv-id altup-moe-29500"
    assert meeting in " ".join(free)
    again = dry_run(capsys, "torchrun", *size, "--node-rank", "1", "--max-restarts", "2", "--", "true")
    assert f"{meeting} --rdzv-conf is_host=0,join_timeout=300" in " ".join(again)


def test_ranks_are_the_gpus_or_one_unless_told() -> None:
    def ranks(env: dict[str, str], gpus: int) -> int:
        return torchrun.node_plan(torchrun.TorchrunOptions(), env, gpus).ranks

    assert [ranks({}, 8), ranks({}, 0), ranks({"RANKS_PER_NODE": "2"}, 8)] == [8, 1, 2]


def test_slurm_numbers_the_nodes_inside_a_step_only() -> None:
    options = torchrun.TorchrunOptions(nodes=2, rdzv="n0:1")
    inside = torchrun.node_plan(options, {"SLURM_STEP_ID": "0", "SLURM_NODEID": "1"}, 0)
    assert "--node-rank 1" in " ".join(inside.agent_arguments())
    assert "--node-rank" not in torchrun.node_plan(options, {"SLURM_NODEID": "1"}, 0).agent_arguments()


def test_deepspeed_gets_checked_hosts_and_one_plain_word(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fake_deepspeed: Path
) -> None:
    (tmp_path / "hosts").write_text("node0 slots=2\nnode1 slots=2 # comment\n")
    flags = ["--hostfile", str(tmp_path / "hosts"), "--no_ssh", "--node_rank", "1"]
    words = dry_run(capsys, "deepspeed", *flags, "--", "true", *AWKWARD)
    assert words[:4] == ["node0", "slots=2", "node1", "slots=2"]
    assert "--master_addr node0 --master_port 29500 --no_local_rank --no_ssh --node_rank 1" in " ".join(words)
    assert unpack(words[-2])[1:] == AWKWARD
    assert not list(tmp_path.glob("**/pwned"))


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=1))
def test_a_packed_command_comes_back_and_holds_nothing_that_a_shell_reads(command: list[str]) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_=-]*", pack(command))
    assert unpack(pack(command)) == command


MISTAKES = [
    ("torchrun", ["--nodes", "0", "--", "true"], "--nodes '0'"),
    ("torchrun", ["--nodes", "2", "--", "true"], "--rdzv: needed for 2 nodes"),
    ("torchrun", ["--nodes", "2", "--rdzv", "n;x:1", "--", "true"], "--rdzv 'n;x'"),
    ("torchrun", ["--nodes", "2", "--rdzv", "n:1", "--node-rank", "2", "--", "true"], "--node-rank '2'"),
    ("torchrun", ["--rdzv-timeout", "0", "--", "true"], "--rdzv-timeout '0'"),
    ("torchrun", ["--ranks-per-node", "x", "--", "true"], "--ranks-per-node='x'"),
    ("torchrun", ["--speed", "1", "--", "true"], "--speed: unknown option"),
    ("torchrun", ["true"], "'true': unexpected word"),
    ("torchrun", [], "command: none given"),
    ("torchrun", ["--", "no-such-program"], "'no-such-program': not found"),
    ("deepspeed", ["--hostfile", "/none", "--", "true"], "--hostfile /none"),
    ("deepspeed", ["--hostfile", "/none", "--ranks-per-node", "2", "--", "true"], "slots= in the file"),
    ("deepspeed", ["--master_addr", "a b", "--", "true"], "--master-addr 'a b'"),
    ("deepspeed", ["--master_port", "0", "--", "true"], "--master-port '0'"),
    ("deepspeed", ["--node_rank", "1", "--", "true"], "--node-rank '1'"),
]


@pytest.mark.parametrize(("launcher", "argv", "says"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    launcher: str, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", launcher, *argv]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


@pytest.mark.parametrize("host", ["n0;touch${IFS}pwned", "$(reboot)", "`reboot`", "a|b", "-w", "a'b"])
def test_a_hostfile_with_metacharacters_is_refused_before_anything_runs(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], fake_deepspeed: Path
) -> None:
    (tmp_path / "hosts").write_text(f"{host} slots=1\n")
    assert main(["launch", "deepspeed", "--hostfile", str(tmp_path / "hosts"), "--", "true"]) == 2
    assert re.fullmatch(r"altup-moe: error: \S+/hosts:1: .* would fit, .*\n", capsys.readouterr().err)
    assert not (tmp_path / "ready").exists()


def test_without_deepspeed_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepspeed, "find_program", lambda name: None)
    assert main(["launch", "deepspeed", "--", "true"]) == 2
    assert capsys.readouterr().err.endswith("install it with pip install 'deepspeed>=0.19.4,<0.20'\n")


def test_what_a_remote_shell_would_read_is_refused() -> None:
    check_remote_shell({"NCCL_DEBUG": "INFO", "PYTHONPATH": "/a b", "OTHER": "$(x)"}, "/srv/run", "/srv/packed.py")
    for env, directory in (({"NCCL_X": "$(x)"}, "/srv"), ({"PYTHONPATH": "a\nb"}, "/srv"), ({}, "/srv/a b")):
        with pytest.raises(LaunchError, match="no-ssh"):
            check_remote_shell(env, directory, "/srv/packed.py")


def test_ranks_share_cores_and_one_node_meets_on_the_loopback() -> None:
    env: dict[str, str] = {}
    assert set_defaults(env, "localhost", nodes=1, ranks_per_node=10_000) == []
    assert env["OMP_NUM_THREADS"] == "1"
    kept = {"OMP_NUM_THREADS": "7", "GLOO_SOCKET_IFNAME": "eth9"}
    assert set_defaults(dict(kept), "no.such.host.invalid", nodes=2, ranks_per_node=1) == []
    (warning,) = set_defaults({}, "no.such.host.invalid", nodes=2, ranks_per_node=1)
    assert "set GLOO_SOCKET_IFNAME" in warning


def test_only_slurms_repetitions_are_passed_over() -> None:
    term, usr1 = signal.SIGTERM, signal.SIGUSR1
    assert not told_already(term, [])
    assert not told_already(term, [term])
    assert told_already(usr1, [term])
    assert told_already(term, [usr1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_goes_past_deepspeed_to_the_ranks(number: int, tmp_path: Path, fake_deepspeed: Path) -> None:
    env = {**os.environ, "PYTHON": sys.executable}
    command = [str(ROOT / "launch" / "deepspeed.sh"), "--", "true"]
    with started(command, env=env, stderr=subprocess.PIPE) as process:
        wait_for(tmp_path / "ready")
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert (tmp_path / "saved").exists()


def test_a_signal_before_the_start_has_returned_reaches_the_ranks_too(
    tmp_path: Path, fake_deepspeed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine ranks run before the launcher has the process that it started."""
    before = {number: signal.getsignal(number) for number in deepspeed.FORWARDED}
    started_process = subprocess.Popen

    def slow_start(*words: object, **options: object) -> object:
        process = started_process(*words, **options)  # type: ignore[call-overload]
        wait_for(tmp_path / "ready")
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr("altup_moe.launch.deepspeed.subprocess.Popen", slow_start)
    try:
        assert deepspeed.LauncherProcess([str(fake_deepspeed / "deepspeed")]).execute() == 75
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (tmp_path / "saved").exists()


def wait_for(path: Path) -> None:
    """Until a file exists."""
    give_up = time.monotonic() + 60
    while not path.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.parametrize("script", ["torchrun.sh", "deepspeed.sh"])
def test_the_scripts_say_how_they_are_used_and_what_python_they_lack(script: str) -> None:
    def run(**env: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / "launch" / script), "--help"]
        return subprocess.run(command, env={**os.environ, **env}, cwd="/", capture_output=True, text=True, timeout=60)

    done = run(PYTHON=sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"examples:\n  altup-moe launch {script.removesuffix('.sh')}")
    done = run(PYTHON="no-such-python")
    assert done.returncode == 2
    assert "no-such-python: not found" in done.stderr
