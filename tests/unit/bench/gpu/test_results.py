"""Figures, how a check is judged by them, and the page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from altup_moe.bench.gpu.checks import CHECKS
from altup_moe.bench.gpu.page import REHEARSED, page, result_lines, value_text
from altup_moe.bench.gpu.results import Figure, Found, Result, ResultFile, found_from, state_of
from tests.unit.bench.gpu.test_runner import MACHINE

NAN = float("nan")
SLOW, QUICK = Figure("a|b", 0.5, at_least=0.85), Figure("c", 0.9, at_least=0.85)
WRONG, RIGHT = Figure("d", 2.0, at_most=1.0, exact=True), Figure("e", 1.0, at_most=1.0, exact=True)


@pytest.mark.parametrize(
    ("figures", "state", "rehearsed"),
    [
        ([], "passed", "passed"),
        ([QUICK, RIGHT, Figure("f", 3.0)], "passed", "passed"),
        ([SLOW, RIGHT], "goal not met", "passed"),
        ([SLOW, WRONG], "wrong", "wrong"),
        ([Figure("g", NAN, at_most=1.0, exact=True)], "wrong", "wrong"),
        ([Figure("h", NAN, at_least=1.0)], "goal not met", "passed"),
    ],
)
def test_a_rehearsal_is_judged_by_numbers_and_not_by_speeds(figures: list[Figure], state: str, rehearsed: str) -> None:
    assert (state_of(Found(figures), False), state_of(Found(figures), True)) == (state, rehearsed)


def test_a_figure_that_is_no_number_survives_the_file(tmp_path: Path) -> None:
    result = Result("wrong", 1.0, "now", "", Found([Figure("x", NAN, at_most=1.0), RIGHT], data={"y": [NAN, 1.0]}))
    ResultFile(tmp_path / "gpu.json", False, dict(MACHINE), {"kernels": result}).save()
    read = ResultFile.read(tmp_path / "gpu.json")
    assert read is not None
    nothing, right = read.results["kernels"].found.figures
    assert (value_text(nothing), nothing.met, right) == ("none", False, RIGHT)
    assert read.results["kernels"].found.data == {"y": [None, 1.0]}
    assert found_from(asdict(Found([RIGHT], ["n"], {"a": 1}))) == Found([RIGHT], ["n"], {"a": 1})


def results(rehearsal: bool) -> ResultFile:
    found = Found([SLOW, RIGHT, Figure("no goal", 1234.5, "GB/s")], ["a note"])
    done = {
        "mixing": Result("goal not met", 61.0, "2026-11-30", "c0ffee", found),
        "losses": Result("failed", 3.0, "2026-11-30", "c0ffee", Found(), "Traceback\nit broke"),
    }
    return ResultFile(Path("gpu.json"), rehearsal, dict(MACHINE), done)


def test_the_page_has_every_figure_with_its_goal() -> None:
    text = page(results(False))
    lines = text.splitlines()
    assert "- Card: NVIDIA H200, 139 GiB, driver 580, CUDA 13.0" in lines
    assert "- Commit: c0ffee; 16 CPU cores" in lines
    assert "| a/b | 0.5 | >= 0.85 | NOT MET |" in lines
    assert "| e | 1 | <= 1 | met |" in lines
    assert "| no goal | 1234 GB/s |  |  |" in lines
    assert "it broke" in lines
    assert REHEARSED not in text
    assert sum(line.endswith("| not run |  |") for line in lines) == len(CHECKS) - 2
    assert "0 of 15 passed; mixing goal not met, losses failed, kernels not run" in text


def test_the_page_of_a_rehearsal_says_so_and_judges_no_speed() -> None:
    lines = page(results(True)).splitlines()
    assert f"**{REHEARSED}**" in lines
    assert "| a/b | 0.5 | >= 0.85 | not judged |" in lines
    assert "| e | 1 | <= 1 | met |" in lines


def test_lines_on_the_console() -> None:
    mixing, losses = (list(result_lines(name, result, False)) for name, result in results(False).results.items())
    assert mixing == [
        "goal not met mixing, 61 s",
        "               0.5  a|b (>= 0.85, NOT MET)",
        "                 1  e (<= 1, met)",
        "         1234 GB/s  no goal",
        "    a note",
    ]
    assert losses == ["failed       losses, 3 s", "    Traceback", "    it broke"]


def test_all_checks_fit_into_forty_minutes() -> None:
    assert sum(check.seconds for check in CHECKS.values()) <= 40 * 60
