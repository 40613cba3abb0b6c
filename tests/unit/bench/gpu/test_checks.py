"""What each check looks at, at tiny sizes; the whole rehearsal is a long test."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from altup_moe.altup.kernels import kernel
from altup_moe.bench.gpu import checkpoints, distributed, kernels, launches, losses, mixing
from altup_moe.bench.gpu.checks import CHECKS
from altup_moe.bench.gpu.efficiency import expert_flops
from altup_moe.bench.gpu.jobs import run_job
from altup_moe.bench.gpu.kernels import DTYPES, KernelCase, check_case, kernel_cases
from altup_moe.bench.gpu.memory import name_of
from altup_moe.bench.gpu.mixing_rivals import RIVALS
from altup_moe.bench.gpu.results import Found
from altup_moe.bench.gpu.sizes import FULL, REHEARSAL, SIZES, ExpertShape, Shape, memory_runs, run_of, step_runs
from altup_moe.bench.gpu.stepped import Stepped, apart, batches, stepped_job
from altup_moe.bench.gpu.steps import step_figures
from altup_moe.bench.gpu.timing import WARM_UPS, interleaved_medians
from altup_moe.cli import main
from altup_moe.config.checks import check_config
from altup_moe.parallel.start_ranks import RankError

CPU = torch.device("cpu")


def test_every_check_has_a_function() -> None:
    from importlib import import_module

    for check in CHECKS.values():
        assert callable(getattr(import_module(f"altup_moe.bench.gpu.{check.module}"), check.function))
    assert [name_of(sizes) for sizes in SIZES.values()] == list(SIZES)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_run_is_one_that_could_start(sizes: Any) -> None:
    for shape in sizes.steps:
        stepped = step_runs(shape).values(), losses.loss_runs(sizes).values(), launches.launched_runs(sizes).values()
        for run in chain(*stepped):
            check_config(run, 1)
    for run in (*memory_runs(sizes.memory).values(), *distributed.alone_runs(sizes)):
        check_config(run, 1)
    for run in distributed.shared_runs(sizes).values():
        check_config(run, 2)


def test_the_kernels_cases_are_all_that_a_step_asks_for() -> None:
    cases = list(kernel_cases(FULL))
    assert len(set(cases)) == len(cases)
    for width in (1, 2, 4, 8):
        for dtype in DTYPES:
            own = [case for case in cases if (case.width, case.dtype) == (width, dtype)]
            columns = {(case.rows + case.singles, case.outputs) for case in own if case.kind == "columns"}
            rows = {1, 2, width, width + 1, width + 2}
            assert columns == {(r, outputs) for r in rows for outputs in (0, 1, 2)}
            tokens = {(case.rows, case.outputs) for case in own if case.kind == "tokens"}
            assert tokens == {(r, outputs) for r in (1, width, width + 1) for outputs in (0, 1)}


@pytest.mark.parametrize("kind", ["columns", "tokens"])
@pytest.mark.parametrize("part", ["forward", "backward", "bits"])
def test_a_kernel_that_is_off_is_seen(kind: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition in torch passes; with a small error in one pass it does not."""
    plain, calls = kernel("torch", CPU), iter(range(100))

    def off(out: torch.Tensor, wanted: str) -> torch.Tensor:
        if part == wanted:
            return out + 1e-4 * out.abs().max()
        return out + 1e-12 * next(calls) * torch.eye(*out.shape[:2]).view(out.shape) if wanted == "bits" else out

    def backward(*args: Any) -> Any:
        d_x, *rest = plain.backward(*args) if kind == "columns" else plain.token_backward(*args)
        d_x = off(d_x, "backward")
        if part == "bits":
            d_x.view(-1)[0] += 1e-7 * next(calls)
        return d_x, *rest

    def forward(*args: Any) -> Any:
        return off(plain.forward(*args) if kind == "columns" else plain.token_forward(*args), "forward")

    passes = {"forward": forward, "backward": backward, "token_forward": forward, "token_backward": backward}
    monkeypatch.setattr(kernels, "kernel", lambda *args: replace(plain, **passes))
    monkeypatch.setattr(kernels, "runs_token_gradients", lambda device: True)
    worst = check_case(KernelCase(kind, 2, 3, 0, 1, "fp32"), REHEARSAL, CPU)
    assert (worst.forward > 1) == (part == "forward")
    assert (worst.backward > 1) == (part == "backward")
    assert (worst.other_bits > 0) == (part == "bits")
    assert worst.cases == 1


def test_one_number_that_is_off_is_seen() -> None:
    draw = kernels._Draw(KernelCase("columns", 1, 1, 0, 0, "bf16"), CPU)
    a, b = torch.ones(1, 1), torch.ones(1, 50)
    got = torch.ones(1, 50, dtype=torch.bfloat16)
    for value, allowed in (
        (1.0, True),
        (1.0 + 2**-7, True),
        (1.0 + 2**-6, False),
        (math.nan, False),
        (math.inf, False),
    ):
        got[0, 7] = value
        assert (draw.error(got, "rc,cn->rn", a, b) <= 1) == allowed
    assert draw.error(torch.full((1, 50), 1.0 + 2e-6), "rc,cn->rn", a, b) == pytest.approx(2, rel=0.2)


def test_gradients_that_the_interpreter_cannot_run_are_not_called_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "runs_token_gradients", lambda device: False)
    monkeypatch.setattr(kernels, "kernel", lambda *args: replace(kernel("torch", CPU), token_backward=None))  # type: ignore[arg-type]
    case = KernelCase("tokens", 2, 2, 0, 1, "bf16")
    worst = check_case(case, REHEARSAL, CPU)
    assert (worst.backward, worst.other_bits) == (-1.0, 0)
    monkeypatch.setattr(kernels, "run_job", lambda *args: [{"a matrix for each token, bf16": vars(worst)}])
    found = kernels.kernels(REHEARSAL)
    assert [figure.what for figure in found.figures] == [
        "a matrix for each token, bf16, forward: largest error over what rounding allows, 1 cases"
    ]
    assert any("not rehearsed" in note for note in found.notes)


@pytest.mark.slow
def test_the_rivals_of_mixing_do_their_work_and_one_that_fails_costs_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are installed make the next stream from (x, y); a rival's failure is a note."""

    def broken(*args: torch.Tensor) -> Any:
        raise RuntimeError("no kernel image\nmore")

    def late(*args: torch.Tensor) -> Any:
        return broken, broken

    rivals = {**{name: rival for name, rival in RIVALS.items() if name.startswith("torch")}}
    rivals |= {"broken": ("torch", broken), "late": ("torch", late), "absent": ("no_such_package", broken)}
    monkeypatch.setattr(mixing, "RIVALS", rivals)
    found = mixing.mixing(replace(REHEARSAL, mixing_shape=(2, 16), repeats=1))
    shares = {figure.what: figure for figure in found.figures if "share of the copy" in figure.what}
    assert len(shares) == 4 * 2 * 4  # settings, parts, contenders
    assert {figure.at_least for name, figure in shares.items() if "einsum" in name} == {None}
    assert {figure.at_least for name, figure in shares.items() if "one matrix, forward" in name} == {0.85}
    assert {figure.at_least for name, figure in shares.items() if "each token, backward" in name} == {0.75}
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in shares.values())
    assert "absent is not installed" in found.notes
    assert any(note.startswith("broken, K = 2, fp32: RuntimeError: no kernel image (") for note in found.notes)
    assert any(note.startswith("late, K = 4, bf16: RuntimeError: no kernel image (") for note in found.notes)


@pytest.mark.parametrize(
    "name", ["torch's einsum", "transformers' Gemma3nTextAltUp", "transformers' DeepSeek-V4 layer"]
)
def test_a_rival_makes_a_next_stream_and_gradients(name: str) -> None:
    x, y, d = torch.randn(4, 6, 8), torch.randn(6, 8), torch.randn(4, 6, 8)
    forward, backward = RIVALS[name][1](x, y, d)
    assert forward().numel() == x.numel()
    for _ in range(2):  # the graph is kept
        gradients = backward()
        assert gradients[0].numel() in (x.numel(), y.numel())
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_step_is_judged_where_it_is_trained_with() -> None:
    medians = {"K = 1": 0.1, "K = 2, inline": 0.11, "K = 2, deferred": 0.101, "K = 4, deferred": 0.105}
    figures = {figure.what: figure for figure in step_figures(Shape(64, 2, 32, 4, 4), medians)}
    assert figures["hidden 64, K = 1: tokens a second"].value == pytest.approx(1280)
    judged = {name: (round(one.value, 3), one.met) for name, one in figures.items() if one.met is not None}
    assert judged == {
        "hidden 64, K = 2, deferred: step over K = 1": (1.01, True),
        "hidden 64, K = 4, deferred: step over K = 1": (1.05, False),
    }


def test_timed_calls_take_turns() -> None:
    order: list[str] = []
    medians = interleaved_medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, CPU)
    assert order == ["a", "b"] * (WARM_UPS + 2)
    assert all(seconds >= 0 for seconds in medians.values())


def test_experts_operations_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 products of rows x hidden x inner width, forward and backward, two operations each."""
    monkeypatch.setattr("altup_moe.bench.gpu.efficiency.interleaved_medians", lambda *args: {"both": 0.5})
    assert expert_flops(ExpertShape(8, 16, 2, 3), 1, CPU) == 2 * 9 * 6 * 8 * 16 / 0.5


def test_ranks_share_the_samples_of_a_step() -> None:
    run = run_of(REHEARSAL.small, 1, "fp32")
    run = replace(run, train=replace(run.train, micro_batch_size=1, global_batch_size=4))

    def tokens(rank: int, size: int, step: int) -> list[Any]:
        topo: Any = SimpleNamespace(data_rank=rank, data_size=size)
        return [batch.tokens.tolist() for batch in batches(run, step, topo)]

    alone = tokens(0, 1, 5)
    assert len(alone) == 4
    assert (tokens(0, 2, 5), tokens(1, 2, 5)) == (alone[::2], alone[1::2])
    assert alone != tokens(0, 1, 6)
    assert max(map(max, alone[0])) < run.model.vocab_size  # type: ignore[type-var]


@pytest.fixture
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setenv("WORLD_SIZE", "1")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_one_rank")
def test_a_run_that_fails_does_not_cost_the_next_one(tmp_path: Path) -> None:
    run = run_of(Shape(32, 2, 16, 2, 2, 64), 2, "fp32")
    run = replace(run, log=replace(run.log, run_dir=str(tmp_path / "run")))
    broken = replace(run, altup=replace(run.altup, kernel="no such kernel"))  # type: ignore[arg-type]
    runs = [run.to_dict(), {**broken.to_dict(), "altup": {**run.to_dict()["altup"], "kernel": "abacus"}}, run.to_dict()]
    argument = {"runs": runs, "until": 2, "save": False, "go_on": True}
    first, failed, again = (Stepped(**one) for one in stepped_job(argument, str(tmp_path)))
    assert len(first.losses) == 2
    assert first.losses == again.losses
    assert "altup.kernel" in failed.error
    assert math.isnan(apart(first, failed))
    assert apart(first, again) == 0.0
    with pytest.raises(Exception, match=r"altup\.kernel"):
        stepped_job({**argument, "go_on": False}, str(tmp_path))


def test_a_rank_that_fails_tells_where() -> None:
    with pytest.raises(RankError, match=r"KeyError: 'no such sizes' \(kernels\.py:\d+ < jobs\.py:\d+\)"):
        run_job("kernels", "no such sizes")


def test_losses_that_differ_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_turn(runs: Any, until: int, place: Path, environment: Any = None) -> list[Stepped]:
        assert {run.altup.kernel for run in runs} <= ({"auto"} if environment else {"auto", "triton"})
        one = Stepped([5.0, 4.0]), Stepped([5.0, 4.0]), Stepped([5.0, 4.0])
        return [*one, Stepped([5.0, 4.001])] if environment else [*one[:2], Stepped(error="no memory"), one[0]]

    monkeypatch.setattr(losses, "stepped_in_turn", in_turn)
    found = losses.losses(REHEARSAL)
    assert [figure.met for figure in found.figures] == [True, True, False, False]
    assert found.figures[3].value == pytest.approx(0.00025, rel=1e-2)
    assert found.notes[-1] == "hc around branches, K = 4: no memory"


def test_ranks_that_fail_are_one_figure_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(run: Any, until: int, place: Path, ranks: int = 1, timeout: float | None = None) -> list[Stepped]:
        assert timeout is not None
        assert timeout < REHEARSAL.patience * CHECKS["two_ranks"].seconds, "one that hangs costs no other"
        if run.overlap.microbatch_halves:
            raise RankError("rank 1 of 2: killed by signal 11")
        return [Stepped([2.0]), Stepped([2.1])] if run.train.recompute == "full" else [Stepped([2.0])] * 2

    monkeypatch.setattr(distributed, "stepped", two)
    monkeypatch.setattr(distributed, "stepped_in_turn", lambda runs, *args: [Stepped([2.0]) for _ in runs])
    found: Found = distributed.two_ranks(REHEARSAL)
    assert [figure.met for figure in found.figures] == [True, True, True, False, True, True, False]
    assert "async, deferred, halves: rank 1 of 2: killed by signal 11" in found.notes


def test_a_resumed_run_that_differs_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([[5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3], [2, 1.5, 0]])
    monkeypatch.setattr(checkpoints, "stepped", lambda *args, **kwargs: [Stepped(list(next(ends)), [1.0] * 6)])
    whole = Stepped([1.0, 2.0], [0.5, 0.5])
    assert checkpoints.differing(whole, Stepped([1.0, 2.0], [0.5, 0.6])) == 1
    monkeypatch.setattr(checkpoints, "stepped", lambda *args, **kwargs: [_stepped(next(ends))])
    assert [figure.met for figure in checkpoints.resume(REHEARSAL).figures] == [True, False]


def _stepped(values: list[float]) -> Stepped:
    return Stepped(list(values), [1.0] * len(values))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", CHECKS)
def test_a_rehearsal_passes(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each check from end to end, on the CPU."""
    directory = tmp_path / "gpu"
    assert main(["bench", "gpu", "--rehearse", "--only", name, "--directory", str(directory)]) == 0, (
        capfd.readouterr().out
    )
    (result,) = json.loads((directory / "gpu.json").read_text())["checks"].items()
    assert (result[0], result[1]["state"]) == (name, "passed")
    assert result[1]["found"]["figures"]
    files = sorted(path.name for path in directory.iterdir())
    assert files == ["cluster.yaml"] * (name == "efficiency") + ["gpu.json", "gpu.md"]
