"""`bench mixing`: the others do the same work, and a goal is met or not by what was measured."""

from __future__ import annotations

import json

import pytest
import torch

from altup_moe.altup.kernels import plain
from altup_moe.bench.bench_mixing import MixingTiming, bench_mixing, goals
from altup_moe.bench.mixing_rivals import GEMMA, LITERAL, rivals
from altup_moe.bench.options import MixingBench


@pytest.mark.parametrize("name", [LITERAL, "einsum"])
def test_static_rivals_do_what_one_pass_does(name: str) -> None:
    """W = [(I - g e_0^T) P | g]."""
    x, y = torch.randn(4, 1, 6, 8), torch.randn(1, 6, 8)
    update, (predict, correct) = rivals(4, 8, torch.float32)[name]
    with torch.no_grad():
        w = torch.cat([predict - correct[:, None] * predict[0], correct[:, None]], dim=1)
        out = update(x, y)
        blocks = torch.stack(out) if isinstance(out, list) else out
        torch.testing.assert_close(blocks.view(4, -1), plain.forward(x.view(4, -1), (y.view(-1),), w))


def test_gemma_is_a_stream_of_the_same_shape() -> None:
    update, parameters = rivals(4, 8, torch.bfloat16)[GEMMA]
    assert update(torch.randn(4, 1, 6, 8).bfloat16(), torch.randn(1, 6, 8).bfloat16()).shape == (4, 1, 6, 8)
    assert len(parameters) == 4


def test_goals_are_judged_by_the_figures() -> None:
    def row(name: str, forward: float, both: float, width: int = 4) -> MixingTiming:
        return MixingTiming(width, 21, "fp32", 2, name, forward, both, forward / 10, both / 20)

    rows = [
        row("torch", 90, 99),
        row("compile", 14, 51),
        row(GEMMA, 60, 203),
        row(LITERAL, 41, 160),
        row("torch", 1, 1, 2),
    ]
    found = goals(rows)
    assert [(round(goal.figure, 2), goal.met) for goal in found] == [
        (1.4, True),
        (2.55, False),
        (4.29, True),
        (3.98, False),
        (2.93, False),
        (3.14, True),
    ]
    assert all("(compile, fp32, 2 threads)" in goal.text for goal in found)
    assert goals(rows[2:]) == []


@pytest.mark.parametrize("as_json", [False, True])
def test_a_small_run_prints_its_figures(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        bench_mixing(
            MixingBench((2,), (12,), threads=(1,), kernels=("torch",), repeats=2, memory="fresh", json=as_json)
        )
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    if not as_json:
        assert len([line for line in out.splitlines() if GEMMA in line]) == 2
        return
    rows = json.loads(out)["rows"]
    for dtype in ("fp32", "bf16"):
        names = [row["name"] for row in rows if row["dtype"] == dtype and row["forward_ms"] > 0 and row["both_ms"] > 0]
        assert names[:5] == ["copy", "torch", LITERAL, "einsum", GEMMA]
