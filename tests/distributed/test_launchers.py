"""One small configuration under each launcher: the same losses; a death or a signal leaves something to go on from."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from altup_moe.launch import netlab
from altup_moe.launch.node import child_processes
from tests.processes import running, started

ROOT = Path(__file__).parents[2]
REASON = netlab.unavailable()
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
TRAIN = ["altup-moe", "train", str(ROOT / "configs" / "quickstart.yaml")]
SMALL = {
    "model.num_layers": 2,
    "model.hidden_size": 32,
    "model.ffn_hidden_size": 64,
    "model.num_attention_heads": 4,
    "model.seq_length": 32,
    "model.vocab_size": 320,
    "moe.ffn_hidden_size": 32,
    "train.micro_batch_size": 2,
    "train.global_batch_size": 4,
    "train.eval_interval": 0,
    "log.tensorboard": "false",
    "checkpoint.save_interval": 0,
}

pytestmark = [pytest.mark.usefixtures("signals_are_heard"), pytest.mark.distributed, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs share tokens."""
    return tmp_path_factory.mktemp("cache")


def command(run_dir: Path, cache: Path, **changes: object) -> list[str]:
    """The training command, 20 steps unless told otherwise."""
    values = {**SMALL, "train.steps": 20, "log.run_dir": run_dir, "data.cache": cache, **changes}
    return [*TRAIN, *(word for key, value in values.items() for word in (f"--{key}", str(value)))]


def launched(launcher: str, *flags: str) -> list[str]:
    """Two ranks under a launcher; the command goes behind it."""
    return [str(ROOT / "launch" / launcher), "--ranks-per-node", "2", *flags, "--"]


def environment() -> dict[str, str]:
    """This environment with this interpreter for the launchers and `altup_moe` from here."""
    return {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def losses(run_dir: Path) -> list[float]:
    """Loss of every step."""
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def under_torchrun(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory under torchrun.sh, with checkpoints of steps 10 and 20."""
    run_dir = tmp_path_factory.mktemp("torchrun") / "run"
    argv = [*launched("torchrun.sh"), *command(run_dir, cache, **{"checkpoint.save_interval": 10})]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not running(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def expected(under_torchrun: Path) -> list[float]:
    """The losses under torchrun.sh."""
    assert len(losses(under_torchrun)) == 20
    return losses(under_torchrun)


@pytest.mark.skipif(not HAS_DEEPSPEED, reason="deepspeed is not installed")
def test_the_same_losses_under_deepspeed(expected: list[float], cache: Path, tmp_path: Path) -> None:
    argv = [*launched("deepspeed.sh", "--master_port", free_port()), *command(tmp_path / "run", cache)]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)
    assert not running(tmp_path / "run")


@pytest.mark.long
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_same_losses_on_two_nodes(expected: list[float], cache: Path, tmp_path: Path) -> None:
    assert netlab.run_on_netlab(2, None, command(tmp_path / "run", cache), env=environment(), timeout=120) == 0
    assert losses(tmp_path / "run") == pytest.approx(expected, abs=1e-4)


def _nodes(count: int, argv: list[str], output: Path) -> list[int]:
    """Exit codes of `count` launchers of two ranks together, here; what they print goes into files."""
    flags = ["--max-restarts", "1", "--ranks-per-node", str(2 // count)]
    port = free_port()
    with ExitStack() as stack:
        nodes = []
        for node in range(count):
            meeting = ["--nodes", str(count), "--node-rank", str(node), "--rdzv", f"127.0.0.1:{port}"]
            words = [str(ROOT / "launch" / "torchrun.sh"), *flags, *(meeting if count > 1 else []), "--", *argv]
            file = stack.enter_context((output / f"node{node}.txt").open("w"))
            nodes.append(stack.enter_context(started(words, env=environment(), stdout=file, stderr=file)))
        return [node.wait(120) for node in nodes]


@pytest.mark.parametrize("nodes", [1, 2])
def test_ranks_start_again_after_one_has_died_and_lose_nothing(
    nodes: int, expected: list[float], cache: Path, tmp_path: Path
) -> None:
    """In the first start rank 1 dies; the second one goes on from the newest checkpoint to the same losses."""
    run_dir = tmp_path / "run"
    words = command(run_dir, cache, **{"checkpoint.save_interval": 3})[1:]
    codes = _nodes(nodes, [sys.executable, str(ROOT / "tests" / "distributed" / "dying.py"), *words], tmp_path)
    said = "".join(path.read_text() for path in sorted(tmp_path.glob("node*.txt")))
    assert codes == [0] * nodes, said[-2000:]
    assert "going on from step 6" in said or "going on from step 3" in said
    assert losses(run_dir) == pytest.approx(expected, abs=1e-4)
    assert not running(run_dir)


def test_a_mistake_that_one_rank_has_is_said_by_it() -> None:
    """As where a file or a package is missing on one node."""
    script = 'if [ $RANK = 1 ]; then exec "$PYTHON" -m altup_moe.cli train nowhere.yaml; fi; exec sleep 100'
    done = subprocess.run([*launched("torchrun.sh"), "sh", "-c", script], env=environment(), capture_output=True,
                          text=True, timeout=100)  # fmt: skip
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "altup-moe: error: " in line]
    assert re.search(r"altup-moe: error: on rank 1 \(\S+\): nowhere\.yaml: No such file", line)


def _below(pid: int) -> list[int]:
    """All processes that a process has started, directly or through others."""
    own = child_processes(pid)
    return own + [found for each in own for found in _below(each)]


@pytest.mark.fault("stop-signals")
@pytest.mark.parametrize(
    ("launcher", "number", "told"),
    [
        ("torchrun.sh", signal.SIGTERM, "launcher"),
        ("torchrun.sh", signal.SIGUSR1, "every process"),
        pytest.param("torchrun.sh", signal.SIGTERM, "every process", marks=pytest.mark.long),
        pytest.param("deepspeed.sh", signal.SIGTERM, "launcher", marks=pytest.mark.long),
        pytest.param("deepspeed.sh", signal.SIGUSR1, "every process", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_stops_and_the_same_command_goes_on(
    launcher: str, number: int, told: str, cache: Path, tmp_path: Path, saw: Callable[[float, int, str], None]
) -> None:
    """srun tells every process of a step at once: the launcher, which tells its ranks, and the ranks."""
    if launcher == "deepspeed.sh" and not HAS_DEEPSPEED:
        pytest.skip("deepspeed is not installed")
    run_dir = tmp_path / "run"
    flags = ["--master_port", free_port()] if launcher == "deepspeed.sh" else []
    argv = [*launched(launcher, *flags), *command(run_dir, cache, **{"train.steps": 100_000})]
    output = tmp_path / "output.txt"
    with output.open("w") as file, started(argv, env=environment(), stdout=file, stderr=file) as process:
        give_up = time.monotonic() + 100
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < give_up:
            time.sleep(0.05)
        for pid in [process.pid, *(_below(process.pid) if told == "every process" else [])]:
            os.kill(pid, number)
        began = time.monotonic()
        assert process.wait(60) == 75, output.read_text()[-2000:]
        saw(time.monotonic() - began, 75, output.read_text())
    assert (run_dir / "checkpoints" / "latest").exists()
    assert not running(run_dir)
