"""Ranks that run one operation after another, on made-up machines where a step's seconds can be said by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from altup_moe.config import AltUpConfig, ConfigError, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.config.load import read_yaml
from altup_moe.model.flops import flops_per_token, layer_products
from altup_moe.plan.calibrate.compare_steps import Compared, verdict
from altup_moe.plan.cluster import Cluster, cluster_from, cluster_yaml
from altup_moe.plan.cpu_cost_model import CALLS, OPERATIONS, PIECES, SIZES, CpuCostModel, mixing_numbers, products
from altup_moe.plan.parameters import count_parameters
from altup_moe.plan.published import PUBLISHED_RUNS, planned
from altup_moe.plan.routes import local_tokens, rank_imbalance
from altup_moe.plan.step import StepPlan, plan_step

FREE = CpuCostModel(
    [1e30] * 27,
    [1e30] * 27,
    dict.fromkeys(PIECES, (0.0, 0.0)),
    dict.fromkeys(CALLS, (0.0, 0.0)),
    dict.fromkeys(OPERATIONS, (0.0, 0.0, 0.0)),
    dict.fromkeys(OPERATIONS, (0.0, 0.0, 0.0)),
)
"""Nothing takes time."""
LAYERS, BATCHES, TOKENS = 8, 16, 256


def costing(field: str, **rows: tuple[float, ...]) -> CpuCostModel:
    return replace(FREE, **{field: {**getattr(FREE, field), **rows}})


def cluster(model: CpuCostModel, gpus_per_node: int = 2) -> Cluster:
    return Cluster("made up", gpus_per_node, 1, 1, 1, 1e6, 1, 1, 1, 1, 1, cpu_cost_model=model)


def run(parallel: dict[str, Any] | None = None, **sections: dict[str, Any]) -> RunConfig:
    config = RunConfig(
        ModelConfig(LAYERS, 128, 256, 8, 4, 128, 512, share_embeddings_and_output_weights=False),
        AltUpConfig(width=1),
        MoEConfig(4, layer_freq=2, ffn_hidden_size=96, shared_expert_size=64, aux_loss_coeff=0),
        ParallelConfig(**(parallel or {})),
        train=TrainConfig(micro_batch_size=2, global_batch_size=2 * BATCHES),
    )
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in sections.items()})


def on(model: CpuCostModel, config: RunConfig, ranks: int = 1) -> StepPlan:
    return plan_step(config, cluster(model), ranks)


LAYOUTS = [{}, {"tensor": 2}, {"tensor": 2, "expert_tensor": 2}, {"expert": 2}, {"pipeline": 2}]


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_products_are_the_counted_operations(parallel: dict[str, int]) -> None:
    config = run(parallel)
    for layer in (0, 1):
        counted = replace(layer_products(config, layer), scores=0.0)
        found = sum(count * rows * inner * outer for count, rows, inner, outer in products(config, layer))
        assert found == pytest.approx(local_tokens(config) * counted.total)


@pytest.mark.parametrize("parallel", LAYOUTS)
def test_where_only_operations_count_a_step_is_operations_over_rate(parallel: dict[str, int]) -> None:
    """At 1 GFLOP/s everywhere; a channel of a score is four operations forward, eight backward."""
    flat = replace(costing("pieces_ns", channel=(4.0, 8.0)), forward_gflops=[1.0] * 27, backward_gflops=[1.0] * 27)
    config = run(parallel)
    ranks = config.parallel.tensor * config.parallel.pipeline * config.parallel.expert
    busy = sum(stage.busy.total for stage in on(flat, config, ranks).stages) * ranks / config.parallel.pipeline
    assert busy == pytest.approx(BATCHES * TOKENS * flops_per_token(config) / 1e9)


def test_rates_lie_between_those_of_measured_sizes() -> None:
    rates = [float(n + 1) for n in range(27)]
    model = replace(FREE, forward_gflops=rates, backward_gflops=[2 * rate for rate in rates])

    def rate(*sizes: float) -> tuple[float, float]:
        forward, backward = model.product(*sizes)
        flops = 2e-9 * sizes[0] * sizes[1] * sizes[2]
        return flops / forward, 2 * flops / backward

    low, middle, high = SIZES
    assert rate(low, low, low) == pytest.approx((1, 2))
    assert rate(middle, high, low) == pytest.approx((1 + 9 + 6, 32))
    assert rate((low * middle) ** 0.5, low, low) == pytest.approx((1 + 4.5, 11))
    # Beyond what was measured, the nearest.
    assert rate(10 * high, low / 10, middle) == pytest.approx((1 + 18 + 1, 40))


def test_calls_of_a_step() -> None:
    model = costing("calls_us", layer=(1, 10), experts=(2, 20), expert=(3, 30), ends=(4, 40), step=(5000, 0))
    whole = LAYERS * 11 + LAYERS / 2 * (22 + 4 * 33) + 44
    assert on(model, run()).seconds == pytest.approx(1e-6 * (BATCHES * whole + 5000))
    again = BATCHES * (LAYERS * 1 + LAYERS / 2 * (2 + 4 * 3))
    recomputed = on(model, run(train={"recompute": "full"}))
    assert recomputed.seconds == pytest.approx(1e-6 * (BATCHES * whole + 5000 + again))
    # A rank with half of the experts has half of their calls.
    halved = on(model, run({"expert": 2}), 2)
    assert halved.seconds == pytest.approx(1e-6 * (BATCHES / 2 * (whole - LAYERS / 2 * 2 * 33) + 5000))


@pytest.mark.parametrize(
    ("piece", "numbers"),
    [
        ("gradient", lambda c: BATCHES * count_parameters(c).total),
        ("update", lambda c: count_parameters(c).total),
        ("norm", lambda c: BATCHES * TOKENS * 128 * (2 * LAYERS + 1)),
        ("gate", lambda c: BATCHES * TOKENS * LAYERS / 2 * (256 + 2 * 96 + 64)),
        ("permute", lambda c: BATCHES * TOKENS * LAYERS / 2 * 2 * 128),
        ("score", lambda c: BATCHES * TOKENS * LAYERS * 8 * 128 / 2),
        ("logit", lambda c: BATCHES * TOKENS * 512),
    ],
)
def test_pieces_of_a_step(piece: str, numbers: Any) -> None:
    config = run()
    seconds = on(costing("pieces_ns", **{piece: (1.0, 2.0)}), config).seconds
    assert seconds == pytest.approx(1e-9 * numbers(config) * (1 if piece == "update" else 3))


def test_mixing_of_a_step() -> None:
    model = costing("pieces_ns", mix=(1.0, 2.0), mix_more=(10.0, 20.0))
    plan = on(model, run(altup={"width": 4}))
    assert plan.seconds == pytest.approx(1e-9 * BATCHES * TOKENS * LAYERS * 5 * 128 * 3 * (1 + 4 * 10))


def test_a_rank_alone_is_faster() -> None:
    model = replace(costing("calls_us", layer=(1, 1)), lone=1.25)
    alone, two = (on(model, run(), ranks).seconds for ranks in (1, 2))
    assert alone == pytest.approx(2 * two / 1.25)


def test_sends_are_the_senders_work() -> None:
    """Two stages, sends of a second and nothing else: the first stage's forward and the second's backward alternate."""
    plan = on(costing("operations", send=(1e6, 1e6, 1e6)), run({"pipeline": 2}), 2)
    assert plan.seconds == pytest.approx(BATCHES + 1)


def test_only_a_link_leaves_a_core_idle() -> None:
    """Inside a node an exchange is the cores' own work, and hides nothing; between nodes its wait does."""
    model = costing("operations", all_to_all=(100.0, 100.0, 100.0))
    slow = replace(model, network={**model.network, "all_to_all": (250.0, 250.0, 250.0)})
    config = run({"expert": 2}, altup={"width": 2})
    inside = plan_step(config, cluster(slow, 2), 2).moe_window
    between = plan_step(config, cluster(slow, 1), 2).moe_window
    assert inside is not None
    assert between is not None
    assert inside.idle == pytest.approx(0)
    # Rows and their probabilities: two calls.
    assert between.idle == pytest.approx(2 * 150e-6)


@pytest.mark.parametrize(
    ("sent", "us"), [(2**8, 10), ((2**8 + 2**18) / 2, 15), (2**18, 20), (2**20, 118.6), (2**22, 512.9)]
)
def test_a_call_lies_on_the_lines_through_the_measured_sizes(sent: float, us: float) -> None:
    model = costing("network", all_gather=(10.0, 20.0, 250.0))
    seconds = model.transfer("all_gather", 4, 4 * sent, between=sent)
    assert seconds == pytest.approx(4e-6 * us, rel=1e-3)


def test_the_fullest_ranks_rows_over_the_mean() -> None:
    """Two ranks of two experts: 6 of 8 rows, 4 of 8; a dense layer has none."""
    counts = [[3, 3, 1, 1], [0, 0, 0, 0], [4, 0, 0, 4]]
    assert rank_imbalance(counts, 2) == pytest.approx((1.5 + 1.0) / 2)
    assert rank_imbalance(counts, 1) == 1
    assert rank_imbalance([[0, 0]], 2) == 1


def test_a_measured_file_is_read_back(tmp_path: Any) -> None:
    made = cluster(costing("pieces_ns", norm=(1.5, 2.5)))
    (tmp_path / "mine.yaml").write_text(cluster_yaml(made))
    back = cluster_from(read_yaml(tmp_path / "mine.yaml"), "made up")
    assert back.cpu_cost_model is not None
    assert back.cpu_cost_model.pieces_ns == made.cpu_cost_model.pieces_ns  # type: ignore[union-attr]
    assert on(back.cpu_cost_model, run()).seconds == on(made.cpu_cost_model, run()).seconds  # type: ignore[arg-type]


def test_a_file_measured_before_the_rename_still_loads(tmp_path: Any) -> None:
    made = cluster(costing("pieces_ns", norm=(1.5, 2.5)))
    (tmp_path / "new.yaml").write_text(cluster_yaml(made))
    (tmp_path / "old.yaml").write_text(cluster_yaml(made).replace("cpu_cost_model:", "unfused:"))
    new, old = (cluster_from(read_yaml(tmp_path / name), "made up") for name in ("new.yaml", "old.yaml"))
    assert old.cpu_cost_model is not None
    assert old == new


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lone": 0}, "lone"),
        ({"forward_gflops": [1.0]}, "forward_gflops"),
        ({"pieces_ns": {"norm": [1, 2]}}, "pieces_ns"),
        ({"calls_us": {key: [1] for key in CALLS}}, "calls_us"),
        ({"more": 1}, "cpu_cost_model"),
    ],
)
def test_a_measured_file_that_cannot_be(tmp_path: Any, change: dict[str, Any], key: str) -> None:
    (tmp_path / "mine.yaml").write_text(cluster_yaml(cluster(FREE)))
    values = read_yaml(tmp_path / "mine.yaml")
    values["cpu_cost_model"].update(change)
    with pytest.raises(ConfigError, match=f"{key}="):
        cluster_from(values, "mine")


def test_published_runs_are_planned_as_before() -> None:
    """What was measured on a CPU touches no chip whose file has no such figures."""
    figures = [0.476, 0.477, 0.441, 0.408, 0.253]
    assert [planned(point).mfu for point in PUBLISHED_RUNS] == pytest.approx(figures, abs=6e-4)


def test_the_verdict() -> None:
    good = [Compared("a", 1.0, 1.1), Compared("b", 2.0, 1.9), Compared("c", 2.01, 1.8)]
    assert list(verdict(good))[-1].endswith(": met")
    # c's place before b is within the noise, one at half of b's time is not.
    assert list(verdict([*good, Compared("d", 1.5, 1.05)]))[-1].endswith("not met")
    assert list(verdict([Compared("a", 1.0, 1.15), Compared("b", 1.2, 1.1)]))[-1].endswith("not met")


def test_steps_of_a_layer_that_join_have_one_pass() -> None:
    """Inline two passes of K + 1 blocks; deferred one of K + 2, and three blocks of the second axpy."""
    config = RunConfig(altup=AltUpConfig(width=4, level="branch"), moe=MoEConfig(num_experts=0))
    block = local_tokens(config) * config.model.hidden_size
    inline = mixing_numbers(replace(config, overlap=replace(config.overlap, mixing="inline")))
    assert inline == {"mix": 10 * block, "mix_more": 40 * block}
    assert mixing_numbers(config) == {"mix": 9 * block, "mix_more": 39 * block}
