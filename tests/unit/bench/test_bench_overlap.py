"""The modes that are compared, the shares that are printed, and the model for GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from altup_moe.bench.bench_overlap import ModeResult, Wide, bench_config, gpu_model, gpu_nanoseconds, modes, streams
from altup_moe.bench.options import OverlapBench
from altup_moe.config import OverlapConfig
from altup_moe.config.checks import check_config
from altup_moe.timeline.overlap import OverlapReport


def test_every_mode_of_a_wide_stream_and_those_that_differ_without_one() -> None:
    assert len(set(modes(Wide(4, "altup")))) == 8
    assert {(m.exchange, m.microbatch_halves) for m in modes(Wide(1, "altup"))} == {
        (exchange, halves) for exchange in ("blocking", "async") for halves in (False, True)
    }
    assert len(modes(Wide(1, "altup"))) == 4
    for correct in ("next", "delayed"):
        found = modes(Wide(2, "altup", correct), only_async=True)
        assert found == [OverlapConfig(mixing, "async", False) for mixing in ("inline", "deferred")]
    assert not any(mode.microbatch_halves for mode in modes(Wide(2, "altup", "delayed")))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_experts_lie_on_all_ranks(ranks: int) -> None:
    config = bench_config(OverlapBench(), Wide(4, "altup"), ranks)
    check_config(config, ranks)
    assert config.parallel.expert == ranks


def test_one_block_is_timed_once_and_each_variant_at_each_width() -> None:
    bench = OverlapBench(widths=(1, 2, 4), variants=("hc", "mhc"), level="branch")
    found = streams(bench)
    assert [(wide.width, wide.variant) for wide in found] == [(1, "hc"), (2, "hc"), (4, "hc"), (2, "mhc"), (4, "mhc")]
    config = bench_config(bench, found[-1], 2)
    check_config(config, 2)
    assert (config.altup.width, config.altup.variant, config.altup.level) == (4, "mhc", "branch")
    delayed = streams(OverlapBench(widths=(1, 2), correct=("next", "delayed")))
    assert [(wide.width, wide.label) for wide in delayed] == [
        (1, "altup"), (1, "plain, delayed"), (2, "altup"), (2, "altup, delayed"),
    ]  # fmt: skip
    # Other steps are over the plain one's, which is measured whatever is asked for.
    assert [wide.correct for wide in streams(OverlapBench(widths=(1,), correct=("delayed",)))] == ["next", "delayed"]
    assert modes(delayed[1], only_async=True) == [OverlapConfig("deferred", "async", False)]
    check_config(bench_config(OverlapBench(level="branch"), delayed[1], 2), 2)
    assert bench_config(bench, Wide(2, "hc", "delayed"), 2).altup.correct == "delayed"


def test_shares() -> None:
    report = OverlapReport(
        step_ms=100, compute_ms=60, exchange_ms=40, exposed_ms=10, hidden_ms=30, mixing_ms=8, mixing_hidden_ms=6,
        mixing_exposed_ms=2, axpy_ms=1, bound_ms=40, attention_ms=12,
    )  # fmt: skip
    result = ModeResult(4, "altup", OverlapConfig(), 0.1, 0.1, 0.1, 1.0, report)
    assert (result.mixing_hidden, result.exchange_hidden, result.bound) == (0.75, 0.75, 1.0)
    assert result.over_max == pytest.approx(70 / 60)
    assert replace(result, report=replace(report, mixing_ms=0)).mixing_hidden is None
    # Attention and mixing (20) can run beside exchanges; the other 40 and the exchanges' 40 are one chain.
    alone = replace(result, attention_alone=True)
    assert alone.bound == 0.5
    assert alone.over_max == pytest.approx(70 / 80)
    much = replace(alone, report=replace(report, attention_ms=50))
    assert much.bound == 1
    assert much.over_max == pytest.approx(70 / 60)


def test_the_gpu_model_gives_the_designs_figures() -> None:
    assert [round(gpu_nanoseconds(2 * k + 2)) for k in (2, 4)] == [16, 27]
    assert gpu_nanoseconds(1) == pytest.approx(2.7, abs=0.05)
    assert "not measured" in gpu_model()[0]
