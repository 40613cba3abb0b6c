"""`bench mixing --dynamic`: whole steps do the same work, and a goal is met or not by what was measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from altup_moe.altup.kernels import kernel
from altup_moe.bench import bench_mixing as bench_mixing_module
from altup_moe.bench.bench_mixing import NO_GPU, bench_mixing
from altup_moe.bench.dynamic_contenders import (
    COMPILED,
    DEEPSEEK,
    HYPER_NAMES,
    STEPS,
    WHOLE,
    deepseek_step,
    dynamic_contenders,
    hyper_steps,
    our_step,
)
from altup_moe.bench.mixing_contenders import MixingContender
from altup_moe.bench.mixing_goals import MixingTiming, dynamic_goals
from altup_moe.bench.options import MixingBench

CPU = torch.device("cpu")


@pytest.mark.parametrize("width", [1, 2, 4])
def test_our_step_is_deepseeks(width: int) -> None:
    """The branch's input, the next stream, and the gradients of x, of y and of every parameter."""
    x, y = torch.randn(width, 6, 16), torch.randn(6, 16)
    d_u, d_x = torch.randn(6, 16), torch.randn(width, 6, 16)
    found = []
    for update, parameters in (our_step(kernel("torch", CPU), width, 16), deepseek_step(width, 16)):
        theirs = len(found) == 1
        x_leaf, y_leaf = x.clone().requires_grad_(), y.clone().requires_grad_()
        if theirs:
            u, out = update(x_leaf.transpose(0, 1)[None].contiguous(), y_leaf[None])
            u, out = u[0], out[0].transpose(0, 1)
        else:
            u, out = update(x_leaf, y_leaf)
        found.append([u, out, *torch.autograd.grad([u, out], [x_leaf, y_leaf, *parameters], [d_u, d_x])])
    assert len(found[0]) == 7
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_hyper_connections_make_a_stream_of_the_same_shape() -> None:
    pytest.importorskip("hyper_connections")
    for update, parameters in hyper_steps(4, 16, torch.float32).values():
        u, out = update(torch.randn(4, 6, 16), torch.randn(1, 6, 16))
        assert (u.shape, out.shape) == ((1, 6, 16), (4, 6, 16))
        assert parameters


def test_a_pass_runs_as_it_is_timed() -> None:
    """`forward` is the pass, `both` that and its derivative."""
    found = dynamic_contenders(MixingBench(hidden_size=16, kernels=("torch",), rivals=False), 2, 10, torch.float32)
    assert list(found) == ["copy", "torch", "torch" + WHOLE]
    out, (d_x, d_y, d_w) = found["torch"].both()
    assert (out.shape, d_x.shape, d_y.shape, d_w.shape) == ((3, 64, 16), (2, 64, 16), (64, 16), (3, 3, 64))
    assert torch.equal(found["torch"].forward(), out)


def test_goals_are_judged_by_the_figures() -> None:
    def row(name: str, forward: float, both: float) -> MixingTiming:
        return MixingTiming(4, 21, "fp32", 1, name, forward, both, forward / 10, both / 20)

    mhc = next(iter(HYPER_NAMES))
    passes = [row("torch", 90, 99), row("compile", 17, 54)]
    whole = [row("torch" + WHOLE, 80, 160), row("compile" + WHOLE, 40, 90), row(DEEPSEEK, 100, 300), row(mhc, 120, 260)]
    found = dynamic_goals(passes + whole)
    assert [(round(goal.figure, 2), goal.met) for goal in found] == [
        (1.7, False),
        (2.7, True),
        (2.5, False),
        (3.33, True),
        (3.0, True),
        (2.89, False),
    ]
    assert ["(compile, whole step, fp32, 1 thread)" in goal.text for goal in found] == [False] * 2 + [True] * 4
    assert dynamic_goals(passes[:0]) == []


def test_triton_is_a_contender_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Triton's interpreter stands for the GPU. Without one a line says so, and stdout stays one JSON object."""
    sizes = {"threads": (1,), "hidden_size": 16, "repeats": 1}
    bench = MixingBench((2,), (7,), ("fp32",), kernels=("torch",), dynamic=True, rivals=False, json=True, **sizes)
    bench_mixing(bench)
    without = capsys.readouterr()
    assert NO_GPU in without.err
    assert {row["device"] for row in json.loads(without.out)["rows"]} == {"cpu"}
    waits: list[None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(None))
    monkeypatch.setattr(bench_mixing_module, "dynamic_contenders", on_the_interpreter)
    bench_mixing(bench)
    with_one = capsys.readouterr()
    rows = [row for row in json.loads(with_one.out)["rows"] if row["device"] == "cuda"]
    assert [row["name"] for row in rows] == ["copy", "triton", "triton" + WHOLE]
    assert len(waits) == 2 * 2 * 3, "the device is waited for in every turn of every part of every contender"
    assert NO_GPU not in with_one.err


def on_the_interpreter(
    bench: MixingBench, width: int, exponent: int, dtype: torch.dtype, device: torch.device
) -> dict[str, MixingContender]:
    """The contenders of a GPU on tensors of the CPU, with the numbers of torch's."""
    if device.type == "cpu":
        return dynamic_contenders(bench, width, exponent, dtype)
    found = dynamic_contenders(replace(bench, kernels=("triton",)), width, exponent, dtype)
    wanted = dynamic_contenders(bench, width, exponent, dtype)
    for what in ("", WHOLE):
        got = found["triton" + what].both()
        torch.testing.assert_close(got, wanted["torch" + what].both(), rtol=1e-4, atol=1e-4)
    return found


@pytest.mark.slow
def test_others_are_measured_by_torch_compile_too() -> None:
    """The same numbers, whatever ran before; where our compiled kernel is not asked for, neither are they."""
    bench = MixingBench(hidden_size=16, kernels=("compile",), dynamic=True)
    found = dynamic_contenders(bench, 2, 7, torch.float32)
    assert {name for name in STEPS if name in found} == set(STEPS)
    for name in (DEEPSEEK, *HYPER_NAMES):
        torch.testing.assert_close(found[name + COMPILED].both(), found[name].both(), rtol=1e-4, atol=1e-4)
    plain = dynamic_contenders(replace(bench, kernels=("torch",)), 2, 7, torch.float32)
    assert not any(name.endswith(COMPILED) for name in plain)


def test_goals_name_the_device() -> None:
    row = MixingTiming(4, 21, "fp32", 0, "triton", 17, 54, 1.7, 2.7, "cuda")
    assert [goal.text.split("(")[1] for goal in dynamic_goals([row])] == ["triton, fp32, cuda)"] * 2


def test_a_small_run_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        sizes = {"threads": (1,), "hidden_size": 16, "repeats": 2}
        bench_mixing(MixingBench((2,), (10,), kernels=("torch",), dynamic=True, memory="fresh", json=True, **sizes))
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(capsys.readouterr().out)["rows"]
    for dtype in ("fp32", "bf16"):
        names = [row["name"] for row in rows if row["dtype"] == dtype and row["forward_ms"] > 0 and row["both_ms"] > 0]
        assert names[:4] == ["copy", "torch", "torch" + WHOLE, DEEPSEEK]
