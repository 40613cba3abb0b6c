"""netlab with its network: traffic passes the links at their rate, and nothing is left on any way out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altup_moe.launch import cluster, netlab
from altup_moe.launch.node import TWICE_SECONDS
from tests.processes import running

ROOT = Path(__file__).parents[2]
NETLAB = [sys.executable, str(ROOT / "launch" / "netlab")]
REASON = netlab.unavailable()

pytestmark = [
    pytest.mark.usefixtures("signals_are_heard"),
    pytest.mark.distributed,
    pytest.mark.timeout(120),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

# Sums over two ranks, 32 MiB sent by each, with the time and the link's own count of bytes.
ALL_REDUCE = """
import json, os, sys, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, x = dist.get_rank(), torch.full((1 << 21,), dist.get_rank() + 1.0)
dist.all_reduce(x)
assert (x == 3.0).all()
sent = lambda: int(open("/sys/class/net/veth0/statistics/tx_bytes").read())
dist.barrier()
before, begin = sent(), time.monotonic()
for _ in range(4):
    dist.all_reduce(x)
seconds = time.monotonic() - begin
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump({"sent": sent() - before, "seconds": seconds, "host": os.listdir("/sys/class/net")}, file)
dist.barrier()
dist.destroy_process_group()
"""


def eventually(condition: Callable[[], bool], seconds: float = 45) -> bool:
    """Whether a condition comes true in time."""
    give_up = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < give_up:
        time.sleep(0.1)
    return met


def namespaces(pid: int) -> list[str]:
    """Namespaces that the netlab of this process has made."""
    return [name for name in cluster.existing() if name.startswith(f"altup-{pid}-")]


def links() -> list[str]:
    """The machine's own interfaces that could be netlab's."""
    return [name for name in os.listdir("/sys/class/net") if re.fullmatch(r"veth0|port\d+|bridge0", name)]


def sleeping(tmp_path: Path, stop: str) -> subprocess.Popen[bytes]:
    """A netlab whose two ranks have said that they run; `stop` is what they do at SIGTERM and SIGINT."""
    script = f"trap {stop} TERM INT; touch {tmp_path}/$RANK; while true; do sleep 0.2; done"
    process = subprocess.Popen([*NETLAB, "--rate", "100mbit", "--", "sh", "-c", script])
    assert eventually(lambda: {"0", "1"} <= {path.name for path in tmp_path.iterdir()}), "the ranks did not start"
    assert len(namespaces(process.pid)) == 3
    return process


def test_a_sum_over_two_nodes_passes_the_links_at_their_rate(tmp_path: Path) -> None:
    script = tmp_path / "all_reduce.py"
    script.write_text(ALL_REDUCE)
    assert netlab.run_on_netlab(2, "100mbit", [sys.executable, str(script), str(tmp_path)], timeout=100) == 0
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert "eth0" not in seen["host"]
        assert 4 * 8 * 2**20 <= seen["sent"] < 1.2 * 4 * 8 * 2**20
        assert 0.6 <= seen["sent"] * 8 / seen["seconds"] / 100e6 <= 1.1
    assert not namespaces(os.getpid())
    assert not running(tmp_path)
    assert not links()
    assert not list(Path("/run").glob(f"altup-{os.getpid()}-*"))


@pytest.mark.long
def test_two_netlabs_at_once_measure_their_own_rates() -> None:
    rates = (50, 100)
    labs = [
        subprocess.Popen([*NETLAB, "--rate", f"{rate}mbit", "--measure"], stdout=subprocess.PIPE, text=True)
        for rate in rates
    ]
    for lab, rate in zip(labs, rates, strict=True):
        out = lab.communicate(timeout=100)[0]
        assert lab.returncode == 0
        measured = [float(value) for value in re.findall(r"([\d.]+) Mbit/s", out)]
        assert len(measured) == 2
        assert all(0.6 * rate <= value <= 1.1 * rate for value in measured), out


def test_a_failing_rank_ends_all_nodes_with_its_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = f"if [ $RANK = 1 ]; then exit 3; fi; touch {tmp_path}/0; while true; do sleep 0.2; done"
    assert netlab.run_on_netlab(2, None, ["sh", "-c", script], timeout=100) == 3
    assert "altup-moe launch netlab: rank 1 ended with exit code 3" in capfd.readouterr().err
    assert not namespaces(os.getpid())
    assert not running(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_reaches_the_ranks_and_nothing_is_left(tmp_path: Path, number: signal.Signals) -> None:
    process = sleeping(tmp_path, stop=f"'touch {tmp_path}/stopped$RANK; exit 75'")
    process.send_signal(number)
    assert process.wait(60) == 75
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", "stopped0", "stopped1"}
    assert not namespaces(process.pid)
    assert not running(tmp_path)


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    process = sleeping(tmp_path, stop="''")
    process.send_signal(signal.SIGINT)
    time.sleep(TWICE_SECONDS + 0.5)  # sooner it would be the same request
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 137
    assert not namespaces(process.pid)
    assert not running(tmp_path)


def test_what_a_killed_netlab_leaves_is_removed_at_the_next_start(tmp_path: Path) -> None:
    """The ranks ignore the SIGTERM that they get when netlab dies, so that they are left too."""
    process = sleeping(tmp_path, stop="''")
    process.kill()
    process.wait(20)
    assert netlab.run_on_netlab(1, None, ["true"], timeout=60) == 0
    assert eventually(lambda: not namespaces(process.pid) and not running(tmp_path), 20)


def test_ranks_end_when_netlab_is_killed_and_clean_removes_the_rest(tmp_path: Path) -> None:
    process = sleeping(tmp_path, stop="'exit 0'")
    process.kill()
    assert eventually(lambda: not running(tmp_path), 30)  # before anything is cleaned, and before it is waited for
    assert subprocess.run([*NETLAB, "--clean"], timeout=60).returncode == 0
    assert eventually(lambda: not namespaces(process.pid), 20)
    process.wait(20)
