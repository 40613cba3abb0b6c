"""Ranks of this machine: their results, the errors that name them, and that none of them stays."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from altup_moe.parallel.start_ranks import RankError, on_ranks, start_process
from tests.processes import running, started

Module = Callable[[str], str]

ANSWERS = """
import os, sys
from altup_moe.parallel.start_ranks import write_result
*words, directory = sys.argv[1:]
write_result(directory, {"words": words, "rank": int(os.environ["RANK"]), "size": int(os.environ["WORLD_SIZE"])})
"""
FAILS = """
import os, pathlib, sys, time
ready = pathlib.Path(sys.argv[1]) / "ready"
if os.environ["RANK"] == "1":
    while not ready.exists():
        time.sleep(0.01)
    sys.exit("no route")
ready.touch()
time.sleep(60)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Write a module that ranks can run; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(source: str) -> str:
        (tmp_path / "job_of_ranks.py").write_text(source)
        return "job_of_ranks"

    return write


def left(marker: Path) -> list[int]:
    return [pid for pid in running(marker) if pid != os.getpid()]


def test_results_come_in_the_order_of_the_ranks(module: Module) -> None:
    found = on_ranks(3, module(ANSWERS), ["a", "b c"])
    assert found == [{"words": ["a", "b c"], "rank": rank, "size": 3} for rank in range(3)]


def test_ranks_meet_through_the_file_store(module: Module) -> None:
    source = """
import os, sys
import torch, torch.distributed as dist
from altup_moe.parallel.start_ranks import store_url, write_result
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=store_url(sys.argv[1]), rank=rank, world_size=2)
sum_ = torch.tensor([rank + 1.0])
dist.all_reduce(sum_)
write_result(sys.argv[1], sum_.item())
dist.destroy_process_group()
"""
    assert on_ranks(2, module(source), environment={"GLOO_SOCKET_IFNAME": "lo"}) == [3.0, 3.0]


def test_a_rank_that_fails_is_named_and_the_others_are_killed(module: Module, tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"^job_of_ranks: rank 1 of 3: exit code 1: no route$"):
        on_ranks(3, module(FAILS), [str(tmp_path)])
    assert (tmp_path / "ready").exists()
    assert left(tmp_path) == []


def test_a_rank_that_is_killed_is_named_with_the_signal(module: Module) -> None:
    source = "import os\nif os.environ['RANK'] == '0': os.kill(os.getpid(), 11)"
    with pytest.raises(RankError, match=r"rank 0 of 2: killed by signal 11$"):
        on_ranks(2, module(source))


def test_ranks_that_do_not_end_in_time_are_named_and_killed(module: Module, tmp_path: Path) -> None:
    # The other rank ends at once, or so late that both are named; either way rank 1 is.
    source = "import os, time\nif os.environ['RANK'] == '1': time.sleep(60)"
    with pytest.raises(RankError, match=r"not finished in 1\.5 s: rank (0, )?1 of 2$"):
        on_ranks(2, module(source), [str(tmp_path)], timeout=1.5)
    assert left(tmp_path) == []


def test_a_rank_without_a_result_is_named(module: Module) -> None:
    source = ANSWERS.replace("*words", "if os.environ['RANK'] == '1': sys.exit()\n*words")
    with pytest.raises(RankError, match=r"^job_of_ranks: rank 1 ended without a result$"):
        on_ranks(2, module(source))


def test_another_start_gets_the_ranks_and_the_command(module: Module) -> None:
    given = []

    def start(ranks: int, command: list[str]) -> int:
        given.append((ranks, command[:-1]))
        for rank in range(ranks):
            (Path(command[-1]) / f"{rank}.json").write_text(json.dumps(rank))
        return 0

    assert on_ranks(2, "a.b", ["c"], start=start) == [0, 1]
    assert given == [(2, [sys.executable, "-m", "a.b", "c"])]
    with pytest.raises(RankError, match=r"^a\.b: a rank ended with exit code 7$"):
        on_ranks(2, "a.b", start=lambda ranks, command: 7)


def test_files_of_the_working_directory_hide_no_module(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(ANSWERS)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "json.py").write_text("raise ImportError('the wrong json')")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(on_ranks(1, name)) == 1


PARENT = """
import pathlib, sys, time
from altup_moe.parallel.start_ranks import start_process
start_process([sys.executable, "-c", sys.argv[2], sys.argv[1]], {}, pathlib.Path(sys.argv[1]) / "log.txt")
time.sleep(60)
"""
SLEEPER = "import pathlib, sys, time; (pathlib.Path(sys.argv[1]) / 'ready').touch(); time.sleep(60)"


def test_a_process_is_killed_when_the_one_that_started_it_is(tmp_path: Path) -> None:
    with started([sys.executable, "-c", PARENT, str(tmp_path), SLEEPER]) as parent:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        parent.kill()
        parent.wait()
        while left(tmp_path):
            assert time.monotonic() < deadline, "it lives on"
            time.sleep(0.005)


def test_what_a_process_prints_is_appended_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.txt"
    for word in ("one", "two"):
        code = "import os, sys; print(sys.argv[1], os.environ['TOLD']); sys.exit(3)"
        assert start_process([sys.executable, "-c", code, word], {"TOLD": "x"}, log).wait() == 3
    assert log.read_text() == "one x\ntwo x\n"
