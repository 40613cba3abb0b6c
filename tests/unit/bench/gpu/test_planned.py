"""What checks have found beside the planner: memory, the published run with small experts, the cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from altup_moe.bench.gpu.planned import CardRates, Planner, cluster_text, compared
from altup_moe.bench.gpu.results import Found, Result, ResultFile
from altup_moe.bench.gpu.sizes import FULL, memory_runs, run_of, step_runs
from altup_moe.commands.gpu_planner import PLANNER, cluster_file, published_error
from altup_moe.config.units import GIB
from altup_moe.plan.cluster import cluster_from, load_cluster
from altup_moe.plan.published import PUBLISHED_RUNS, planned
from altup_moe.plan.step import plan_step
from tests.unit.bench.gpu.test_runner import MACHINE

RATES = {"bf16_flops": 7.9e14, "fp32_flops": 5.0e13, "copy_bytes": 4.3e12}


def test_peaks_are_compared_with_the_planner() -> None:
    peaks = {name: PLANNER.peak_bytes(run) / 1.05 for name, run in memory_runs(FULL.memory).items()}
    peaks["K = 4, bf16"] *= 2
    found = Found(data={"peaks": peaks, "sizes": "full"})
    compared("memory", found, PLANNER)
    assert [figure.met for figure in found.figures] == [name != "K = 4, bf16" for name in peaks]
    assert [round(figure.value, 3) for figure in found.figures] == [
        0.475 if name == "K = 4, bf16" else 0.05 for name in peaks
    ]
    assert f"planned {peaks['K = 1, bf16'] * 1.05 / GIB:.2f} GiB" in found.figures[0].what


def test_the_published_run_is_planned_again_with_the_small_experts_share() -> None:
    (run,) = (one for one in PUBLISHED_RUNS if one.name == "GPT-OSS 120B")
    assert published_error(1.0) == pytest.approx(planned(run).mfu / run.mfu - 1)
    errors = [published_error(relative) for relative in (1.0, 0.7, 0.4)]
    assert errors == sorted(errors, reverse=True)
    # Two thirds of the time or more is products, most of them experts': half the rate costs a good part of it.
    assert (1 + published_error(0.5)) / (1 + errors[0]) == pytest.approx(0.65, abs=0.1)
    found = Found(data={"small_expert": 0.3, "large_expert": 0.6, "sizes": "full"})
    compared("efficiency", found, PLANNER)
    assert [figure.value for figure in found.figures] == [0.5, errors[0], abs(published_error(0.5))]
    assert [figure.met for figure in found.figures] == [None, None, abs(published_error(0.5)) <= 0.15]


def test_a_cluster_file_has_the_cards_rates_and_the_steps_it_took() -> None:
    base = load_cluster("h200x8")
    runs = [step_runs(shape)["K = 1"] for shape in FULL.steps]
    seconds = [2 * plan_step(run, base, 1).seconds for run in runs]
    card = CardRates("NVIDIA H200", 139.0, **RATES, steps=tuple(zip(runs, seconds, strict=True)))
    text = cluster_file(card)
    cluster = cluster_from(yaml.safe_load(text), "measured")
    assert (cluster.memory_gib, cluster.memory_gb_per_s) == (139.0, 4300.0)
    assert (cluster.peak_tflops_bf16, cluster.node_gb_per_s) == (base.peak_tflops_bf16, base.node_gb_per_s)
    ratios = [plan_step(run, cluster, 1).seconds / taken for run, taken in zip(runs, seconds, strict=True)]
    assert ratios[0] * ratios[1] == pytest.approx(1.0, abs=0.01)
    assert "# Measured by altup-moe bench gpu on NVIDIA H200:" in text
    assert "plan measure" not in text


def test_a_card_without_a_data_sheet_has_its_measured_peaks() -> None:
    cluster = cluster_from(yaml.safe_load(cluster_file(CardRates("NVIDIA B42", 32.0, **RATES))), "measured")
    assert (cluster.peak_tflops_bf16, cluster.peak_tflops_fp32, cluster.efficiency) == (790.0, 50.0, 1.0)


def test_the_cluster_file_waits_for_the_rates_and_takes_the_steps_if_they_are_there() -> None:
    seen: list[CardRates] = []
    planner = Planner(lambda run: 1.0, lambda relative: 0.0, lambda card: seen.append(card) or "text")  # type: ignore[func-returns-value]
    file = ResultFile(Path("gpu.json"), False, dict(MACHINE))
    assert cluster_text(file, planner) is None
    file.results["efficiency"] = Result("failed", 1.0, "", "", Found())
    assert cluster_text(file, planner) is None
    file.results["efficiency"] = Result("passed", 1.0, "", "", Found(data={"rates": RATES, "sizes": "full"}))
    assert cluster_text(file, planner) == "text"
    taken = {shape.name: {"K = 1": 0.1 * number} for number, shape in enumerate(FULL.steps, 1)}
    file.results["steps"] = Result("passed", 1.0, "", "", Found(data={"seconds": taken, "sizes": "full"}))
    cluster_text(file, planner)
    assert [card.steps for card in seen] == [
        (),
        tuple((run_of(shape), 0.1 * number) for number, shape in enumerate(FULL.steps, 1)),
    ]
    assert (seen[0].card, seen[0].memory_gib, seen[0].copy_bytes) == ("NVIDIA H200", 139.0, 4.3e12)
