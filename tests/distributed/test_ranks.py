"""Living ranks: what a case leaves behind, and what becomes of ranks whose case fails, dies or hangs."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from altup_moe.launch import cluster
from tests.distributed import ranks
from tests.distributed.cases import LAYOUTS, small
from tests.distributed.gradients import layout_step
from tests.distributed.ranks import run_fresh_ranks, run_ranks

pytestmark = pytest.mark.distributed


def _held() -> tuple[int, int]:
    """(threads, open files) of this process."""
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))


def _uses_of_topology(layout: str, count: int) -> list[tuple[int, int]]:
    """On a rank: (threads, process groups) before and after each of so many steps."""
    gc.collect()
    found = [(_held()[0], len(dist.distributed_c10d._world.pg_map))]
    for _ in range(count):
        layout_step(small(layout))
        found.append((_held()[0], len(dist.distributed_c10d._world.pg_map)))
    return found


@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2-vpp2"])
def test_a_topology_takes_its_groups_and_their_threads_along(layout: str) -> None:
    """Inside a world that goes on, with a model, its optimizer and a step: only the world itself is left."""
    for before, *after in run_fresh_ranks(2, _uses_of_topology, layout, 4):
        # The first backward pass starts a thread or two that stay.
        assert after[0][0] <= before[0] + 3
        assert [threads for threads, _ in after] == [after[0][0]] * 4
        assert [groups for _, groups in (before, *after)] == [1] * 5


def _groups_inside(layout: str) -> int:
    from altup_moe.parallel.topology import topology

    with topology(LAYOUTS[layout]):
        return len(dist.distributed_c10d._world.pg_map)


def test_after_fifty_cases_a_rank_holds_what_it_held_after_one() -> None:
    pids = run_ranks(2, os.getpid)
    assert all(groups > 10 for groups in run_ranks(2, _groups_inside, "tp2"))
    run_ranks(2, layout_step, small("tp2"))
    once = run_ranks(2, _held)
    for number in range(50):
        cases: list[tuple] = [(layout_step, small("tp2")), (_groups_inside, "ep2"), *[(os.getpid,)] * 8]
        run_ranks(2, *cases[number % 10])
    assert run_ranks(2, _held) == once
    assert run_ranks(2, os.getpid) == pids


def _everything() -> tuple:
    return (
        torch.rand(2).tolist(),
        random.random(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        {key: value for key, value in os.environ.items() if "TORCHELASTIC" not in key},
        os.getcwd(),
        list(sys.path),
        str(warnings.filters),
        signal.getsignal(signal.SIGTERM),
        dist.get_world_size(),
    )


def _change_everything() -> None:
    torch.manual_seed(dist.get_rank())
    random.seed(5)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    torch.set_grad_enabled(False)
    os.environ["ALTUP_MOE_TEST"] = "1"
    del os.environ["OMP_NUM_THREADS"]
    os.chdir("/")
    sys.path.insert(0, "/nowhere")
    warnings.simplefilter("error")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.new_group([0])


def test_a_case_finds_nothing_of_the_one_before() -> None:
    before = run_ranks(2, _everything)
    run_ranks(2, _change_everything)
    assert run_ranks(2, _everything) == before


def test_a_smaller_case_runs_on_some_of_the_ranks() -> None:
    pids = run_ranks(3, os.getpid)
    assert run_ranks(1, os.getpid) == pids[:1]
    assert run_ranks(2, dist.get_world_size) == [2, 2]
    assert run_ranks(3, os.getpid) == pids


def _fail_on(rank: int) -> int:
    if dist.get_rank() == rank:
        raise ValueError("this one")
    dist.barrier()
    return dist.get_rank()


def _die_on(rank: int) -> None:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def _hang_on(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(600)
    dist.barrier()


def _gone(pids: list[int]) -> bool:
    return all(cluster.start_time(pid) is None for pid in pids)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (_fail_on, r"(?s)rank 1 failed:.*ValueError: this one"),
        (_die_on, "rank 1 died of SIGKILL"),
        (_hang_on, r"ranks \[0, 1\] did not finish in time"),
    ],
)
def test_ranks_of_a_case_that_goes_wrong_are_replaced(case, message: str) -> None:
    pids = run_ranks(2, os.getpid)
    with pytest.raises(RuntimeError, match=message):
        run_ranks(2, case, 1, timeout=5.0 if case is _hang_on else 60.0)
    assert _gone(pids)
    assert run_ranks(2, dist.get_rank) == [0, 1]
    assert not set(pids) & set(run_ranks(2, os.getpid))


def _unsendable() -> object:
    return lambda: None


def test_a_result_that_cannot_be_sent_is_the_ranks_failure() -> None:
    with pytest.raises(RuntimeError, match="rank 0 failed"):
        run_ranks(1, _unsendable)


def test_fresh_ranks_are_new_and_gone_afterwards() -> None:
    before, living = ranks.started, run_ranks(2, os.getpid)
    pids = run_fresh_ranks(2, os.getpid)
    assert not set(pids) & set(living)
    assert _gone(pids)
    assert ranks.started >= before + 2


CHILD = """
import os, sys, time
from tests.distributed.ranks import run_ranks, start_ranks
if __name__ == "__main__":
    print(*run_ranks(2, os.getpid), flush=True)
    with start_ranks(1, time.sleep, 600) as processes:
        print(processes[0].pid, flush=True)
        time.sleep(600)
"""


def test_ranks_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Also in the middle of a case, and however it ends."""
    (tmp_path / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, tmp_path / "child.py"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for _ in range(2) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        assert not any(cluster.start_time(pid) is None for pid in pids)
        process.kill()
    deadline = time.monotonic() + 20
    while not _gone(pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
