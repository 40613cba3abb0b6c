"""Checks run in processes of their own: whatever ends one, its result is kept and the others run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from altup_moe.bench import bench_gpu as command
from altup_moe.bench.gpu import child, page, runner
from altup_moe.bench.gpu.options import GpuBench
from altup_moe.bench.gpu.planned import Planner
from altup_moe.bench.gpu.results import Figure, Found, Result, ResultFile
from altup_moe.cli import main
from altup_moe.config import ConfigError, DataError
from tests.unit.bench.gpu.fake_checks import CHECKS, NAMES

MACHINE = {"card": "NVIDIA H200", "commit": "c0ffee", "libraries": {"torch": "2.11.0"}, "cores": 16}
MACHINE |= {"memory_gib": 139.0, "cuda": "13.0", "driver": "580"}
PLANNER = Planner(lambda run: 1.0, lambda relative: 0.0, lambda card: "")


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runner, page):
        monkeypatch.setattr(module, "CHECKS", CHECKS)
    monkeypatch.setattr(runner, "CHILD", "tests.unit.bench.gpu.fake_checks")


def run(path: Path, *only: str, again: tuple[str, ...] = (), minutes: float = 40.0) -> tuple[ResultFile, list[str]]:
    """A call of the command, with the machine and the planner of these tests. Returns the file and what is left."""
    options = GpuBench(str(path), minutes, only, again)
    file = runner.open_results(path, False, dict(MACHINE))
    return file, runner.run_checks(options, file, PLANNER, lambda line: None)


@pytest.mark.slow
def test_every_end_of_a_check_is_its_own_result(tmp_path: Path) -> None:
    file, left = run(tmp_path, *NAMES)
    states = {name: result.state for name, result in file.results.items()}
    assert states == {
        "fine": "passed",
        "slow": "goal not met",
        "wrong": "wrong",
        "raises": "failed",
        "crashes": "failed",
        "hangs": "timed out",
        "stops": "timed out",
    }
    assert left == []
    errors = {name: result.error for name, result in file.results.items()}
    assert errors["raises"].endswith("ZeroDivisionError: of the check")
    assert "killed by signal 9" in errors["crashes"]
    assert "in hangs" in errors["hangs"], "where it hangs"
    assert "not finished in 2 s" in errors["stops"]
    kept = ResultFile.read(tmp_path / "gpu.json")
    assert kept is not None
    assert {name: result.state for name, result in kept.results.items()} == states
    fine = kept.results["fine"]
    assert (fine.commit, fine.found.notes, fine.found.data) == ("c0ffee", ["a note"], {"device": "cuda"})
    assert runner.any_bad(kept)
    text = (tmp_path / "gpu.md").read_text()
    assert all(f"## {name}: {state}" in text for name, state in states.items())


def test_the_time_that_a_process_takes_to_start_is_a_part_of_its_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 s 40 are over: it tells where it hangs 3 s before the end."""
    asked: list[float] = []

    class Timer:
        def __init__(self, seconds: float, *_: object) -> None:
            asked.append(seconds)

        def start(self) -> None:
            pass

        cancel = start

    monkeypatch.setattr(child.threading, "Timer", Timer)
    monkeypatch.setattr(child.time, "monotonic", lambda: 1040.0)
    monkeypatch.setattr(child, "write_result", lambda *_: None)
    monkeypatch.setitem(child.CHECKS, "kernels", CHECKS["fine"])
    for end, left in ((1100.0, 57.0), (1041.0, 0.0)):
        child.main("kernels", "rehearsal", "100.0", str(end), "")
        assert asked.pop() == left


def test_a_second_call_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    first, _ = run(tmp_path, "fine")
    second, _ = run(tmp_path, "fine", "slow")
    assert second.results["fine"] == first.results["fine"], "not run again"
    time.sleep(1.1)  # times are told in seconds
    third, _ = run(tmp_path, "fine", again=("slow",))
    assert third.results["fine"] == first.results["fine"]
    assert third.results["slow"].when != second.results["slow"].when
    assert list(third.results) == ["fine", "slow"]


def test_a_check_starts_only_if_its_budget_fits(tmp_path: Path) -> None:
    """Those that fit go on after one that does not."""
    file, left = run(tmp_path, "fine", "stops", minutes=0.5)
    assert left == ["fine"]
    assert list(file.results) == ["stops"]


def test_results_of_another_card_or_a_rehearsal_are_left_alone(tmp_path: Path) -> None:
    run(tmp_path, "fine")
    before = (tmp_path / "gpu.json").read_bytes()
    with pytest.raises(ConfigError, match="has results of NVIDIA H200"):
        runner.open_results(tmp_path, False, {**MACHINE, "card": "NVIDIA H100"})
    with pytest.raises(ConfigError, match="has results of NVIDIA H200"):
        runner.open_results(tmp_path, True, {**MACHINE, "card": ""})
    runner.open_results(tmp_path, False, {**MACHINE, "commit": "another"})
    assert (tmp_path / "gpu.json").read_bytes() == before


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    for text, says in (("{", "is no JSON"), ('{"version": 7}', "is not what this version of bench gpu writes")):
        file.write_text(text)
        with pytest.raises(DataError, match=says):
            ResultFile.read(file)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, _ = run(tmp_path, "fine")
    before = (tmp_path / "gpu.json").read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        file.add("slow", Result("passed", 1.0, "now", "c0ffee", Found([Figure("x", 1.0)])))
    assert (tmp_path / "gpu.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.md"]


def test_a_comparison_that_fails_is_the_checks_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyError("peaks")

    monkeypatch.setattr(runner, "compared", broken)
    file, _ = run(tmp_path, "fine")
    assert file.results["fine"].state == "failed"
    assert "KeyError: 'peaks'" in file.results["fine"].error


def test_a_cluster_that_cannot_be_costs_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("no rate")

    monkeypatch.setattr(runner, "cluster_text", broken)
    said: list[str] = []
    file = runner.open_results(tmp_path, False, dict(MACHINE))
    runner.run_checks(GpuBench(str(tmp_path), only=("fine", "slow")), file, PLANNER, said.append)
    assert list(file.results) == ["fine", "slow"]
    assert said.count("cluster.yaml was not written: ZeroDivisionError: no rate") == 2


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_machine", lambda: {**MACHINE, "card": ""})
    assert main(["bench", "gpu", "--directory", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said == (
        "altup-moe: error: bench gpu: torch 2.11.0 sees no GPU here; --rehearse tries everything on the CPU\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("only", "code"), [("fine", 0), ("slow", 0), ("wrong", 1)])
def test_the_exit_code_tells_wrong_numbers_apart_from_missed_goals(
    only: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_machine", lambda: dict(MACHINE))
    assert command.bench_gpu(GpuBench(str(tmp_path), only=(only,), json=True), PLANNER) == code
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "gpu.json").read_text())
    assert told["checks"][only]["commit"] == "c0ffee"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--only", "kernel"], "only='kernel'"),
        (["--minutes", "0"], "--minutes=0.0"),
        (["--directory", __file__], "is a file; a directory would fit"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_machine", lambda: pytest.fail("started"))
    assert main(["bench", "gpu", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
