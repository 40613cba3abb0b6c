"""netlab without a network: the plan, what the user can get wrong, and how nodes are waited for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.launch import cluster, netlab
from altup_moe.launch.netplan import NetlabPlan, Node, bits_per_second, burst_bytes, make_plan

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.usefixtures("signals_are_heard")


def plain_nodes(*scripts: str) -> NetlabPlan:
    """Shell scripts as nodes, with no network around them."""
    return NetlabPlan((), tuple(Node("", "", ("sh", "-c", script), {}) for script in scripts), ())


def test_the_plan_of_two_nodes() -> None:
    plan = make_plan("altup-1-2-0", 2, "200mbit", ["cmd", "--x", "a b"], env={"A": "1"}, python="py")
    assert [" ".join(argv) for argv in plan.create] == [
        "ip netns add altup-1-2-0-switch",
        "ip -n altup-1-2-0-switch link add bridge0 type bridge",
        "ip -n altup-1-2-0-switch link set bridge0 up",
        "ip netns add altup-1-2-0-0",
        "ip -n altup-1-2-0-0 link set lo up",
        "ip link add veth0 netns altup-1-2-0-0 type veth peer name port0 netns altup-1-2-0-switch",
        "ip -n altup-1-2-0-switch link set port0 master bridge0 up",
        "ip -n altup-1-2-0-0 addr add 10.77.0.1/24 dev veth0",
        "ip -n altup-1-2-0-0 link set veth0 up",
        "tc -n altup-1-2-0-0 qdisc add dev veth0 root tbf rate 200mbit burst 100000b latency 100ms",
        "ip netns add altup-1-2-0-1",
        "ip -n altup-1-2-0-1 link set lo up",
        "ip link add veth0 netns altup-1-2-0-1 type veth peer name port1 netns altup-1-2-0-switch",
        "ip -n altup-1-2-0-switch link set port1 master bridge0 up",
        "ip -n altup-1-2-0-1 addr add 10.77.0.2/24 dev veth0",
        "ip -n altup-1-2-0-1 link set veth0 up",
        "tc -n altup-1-2-0-1 qdisc add dev veth0 root tbf rate 200mbit burst 100000b latency 100ms",
    ]
    assert plan.namespaces == ("altup-1-2-0-0", "altup-1-2-0-1", "altup-1-2-0-switch")
    node = plan.nodes[1]
    assert node.argv[:8] == ("setpriv", "--pdeathsig", "TERM", "--", "ip", "netns", "exec", "altup-1-2-0-1")
    assert node.argv[-4:] == ("--no-python", "cmd", "--x", "a b")
    assert "--nnodes 2 --nproc-per-node 1 --node-rank 1 --master-addr 10.77.0.1" in " ".join(node.argv)
    assert node.env == {"A": "1", "GLOO_SOCKET_IFNAME": "veth0", "NCCL_SOCKET_IFNAME": "veth0"}
    assert plan.lines()[-1] == "ip netns del altup-1-2-0-switch"


def test_no_rate_means_no_limit() -> None:
    plan = make_plan("p", 3, None, ["cmd"], ranks_per_node=2)
    assert not [argv for argv in plan.create if argv[0] == "tc"]
    assert len(plan.nodes) == 3
    assert "--nproc-per-node 2" in " ".join(plan.nodes[2].argv)


def test_rates_and_their_buckets() -> None:
    assert bits_per_second("1.5gbit") == 1.5e9
    assert bits_per_second("64kbit") == 64e3
    assert burst_bytes("1mbit") == 16 * 1024
    # What passes in 4 ms, the longest pause between two ticks of a 250 Hz timer.
    assert burst_bytes("1gbit") == 500_000


MISTAKES = [
    (["--rate", "200megs", "--", "true"], "--rate '200megs'", "200mbit"),
    (["--rate", "10kbit", "--", "true"], "--rate '10kbit'", "64kbit"),
    (["--nodes", "0", "--", "true"], "--nodes 0", "1 to 64"),
    (["--nodes", "two", "--", "true"], "--nodes", "two"),
    (["--ranks-per-node", "0", "--", "true"], "--ranks-per-node 0", "1 to 64"),
    (["--nodes", "2"], "command", "--"),
    (["--nodes", "2", "--"], "command", "--"),
    (["altup-moe", "train"], "'altup-moe'", "behind --"),
    (["--speed", "3", "--", "true"], "--speed: unknown option", "nearest is --"),
    (["--", "no-such-program"], "'no-such-program'", "PATH"),
    (["--measure", "--", "true"], "--measure", "'true'"),
    (["--measure", "--nodes", "3"], "--measure", "2 of 1"),
]


@pytest.mark.parametrize(("argv", "names", "fits"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], names: str, fits: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "execute", lambda argv: pytest.fail(f"{argv} was run"))
    assert main(["launch", "netlab", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("altup-moe: error: ")
    assert names in err
    assert fits in err


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["launch", "netlab", "--", "true"]) == 2
    assert "needs root" in capsys.readouterr().err
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "ip, tc, setpriv, unshare" in (netlab.unavailable() or "")


def test_the_script_prints_its_commands_without_root() -> None:
    script = [sys.executable, str(ROOT / "launch" / "netlab"), "--rate", "1gbit", "--dry-run", "--", "true"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ip netns add altup-")
    assert "GLOO_SOCKET_IFNAME=veth0 " in done.stdout
    assert "rate 1gbit burst 500000b" in done.stdout


def test_the_first_failure_stops_the_others_and_gives_the_exit_code() -> None:
    begin = time.monotonic()
    assert cluster.run_plan(plain_nodes("exec sleep 60", "exit 3", "exec sleep 60"), 30, None, None) == 3
    assert time.monotonic() - begin < 20


def test_a_node_that_does_not_stop_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "FAILURE_GRACE", 0.3)
    begin = time.monotonic()
    assert cluster.run_plan(plain_nodes("trap '' TERM; exec sleep 60", "exit 4"), 30, None, None) == 4
    assert time.monotonic() - begin < 20


def test_a_death_by_signal_is_128_and_more() -> None:
    assert cluster.run_plan(plain_nodes("kill -9 $$", "true"), 30, None, None) == 137


def test_all_well_is_0_and_too_long_is_124() -> None:
    assert cluster.run_plan(plain_nodes("true", "true"), 30, 60, None) == 0
    assert cluster.run_plan(plain_nodes("exec sleep 60"), 30, 0.2, None) == 124


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP"])
def test_a_signal_goes_to_every_node_once_and_their_exit_code_comes_back(name: str, tmp_path: Path) -> None:
    """The nodes end at different times: the first to end must not have the others told again."""
    ready = tmp_path / "ready"
    node = "n=0; trap 'n=$((n+1))' {0}; {1}; while [ $n = 0 ]; do sleep 0.1; done; sleep {2}; exit 7$n"
    first = node.format(name, f"touch {ready}", 0)
    second = node.format(name, f"while [ ! -e {ready} ]; do sleep 0.05; done; kill -{name} $PPID", 0.5)
    second = second.replace("exit 7$n", f"echo $n > {tmp_path / 'count'}; exit 7$n")
    assert cluster.run_plan(plain_nodes(first, second), 30, 60, None) == 71
    assert (tmp_path / "count").read_text() == "1\n"


def test_a_signal_told_twice_at_once_is_one_request(tmp_path: Path) -> None:
    """As of a rank: the second Ctrl-C kills only where it comes 2 s or more after the first."""
    node = "trap 'kill -INT $PPID; sleep 0.5; exit 75' INT; kill -INT $PPID; while :; do sleep 0.1; done"
    assert cluster.run_plan(plain_nodes(node), 30, 60, None) == 75


def test_node_0_speaks_for_itself_and_the_others_behind_their_number(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nodes = plain_nodes("echo zero", "echo one; echo 1 >&2; printf end")
    assert cluster.run_plan(nodes, 30, 60, None) == 0
    assert capfd.readouterr() == ("zero\n", "[node 1] one\n[node 1] 1\n[node 1] end\n")
    assert cluster.run_plan(nodes, 30, 60, tmp_path) == 0
    assert capfd.readouterr() == ("zero\n", "")
    assert (tmp_path / "node1.log").read_text() == "one\n1\nend"


def test_a_process_is_known_by_when_it_started() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert cluster.start_time(process.pid) is not None
        process.kill()
        time.sleep(0.2)
        assert cluster.start_time(process.pid) is None  # killed but not yet waited for
