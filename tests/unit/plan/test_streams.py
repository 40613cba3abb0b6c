"""Streams with weights of every token: what the planner counts of a step, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from altup_moe.altup.step_costs import Kept
from altup_moe.altup.variants import VARIANTS
from altup_moe.config import AltUpConfig, ConfigError, RunConfig
from altup_moe.parallel.rank_coordinates import ChunkLayers
from altup_moe.plan.cpu_cost_model import TOKEN_COSTS
from altup_moe.plan.layer_time import mixing_seconds
from altup_moe.plan.report import plan_lines
from altup_moe.plan.routes import local_tokens
from altup_moe.plan.step import StepPlan
from altup_moe.plan.streams import (
    block_bytes,
    kept_bytes,
    recomputed_bytes,
    recomputed_step_bytes,
    recomputing_bytes,
    token_step,
)
from tests.unit.plan import test_cpu_cost_model as cpu
from tests.unit.plan.test_step import load_cluster, planned_on, run

BRANCH: dict[str, Any] = {"level": "branch", "width": 4}
H100 = load_cluster("h100x8")
PER_TOKEN = [name for name, row in VARIANTS.items() if row.costs is not None]


@pytest.mark.parametrize("deferred", [True, False])
@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("name", PER_TOKEN)
def test_products_of_a_step_are_those_of_the_count_of_operations(name: str, width: int, deferred: bool) -> None:
    step = VARIANTS[name].costs(width, 96, False, deferred)  # type: ignore[misc]
    found = sum(inner * outer for work in (step.waits, step.posted) for inner, outer in work.products)
    assert found == VARIANTS[name].coefficient_products(width, 96)


def test_every_planned_row_says_what_a_step_costs() -> None:
    """Static weights are one pass, whatever they are; `sum` has no stream."""
    for row in VARIANTS.values():
        assert row.planned
        assert (row.costs is None) == (row.weights is not None or not row.blocks), row.name


def config(variant: str, mixing: str = "deferred", **sections: Any) -> RunConfig:
    return run({"expert": 8}, altup={**BRANCH, "variant": variant}, overlap={"mixing": mixing}, **sections)


def test_what_single_pass_posts_is_all_but_an_axpy() -> None:
    """A write of K + 1 blocks to K, and a pass of K to K + 1; Q x, the sum of squares, 39 passes over 16 numbers."""
    one = config("mhc_single_pass")
    tokens, block, rate = local_tokens(one), block_bytes(one), H100.memory_rate
    network = 4 * 1024 + (4 * 1024 + 24) + 39 * 3 * 16
    posted = (18 * block + 4 * tokens * network) / rate + 2 * tokens * 4 * 1024 * 24 / H100.flops("fp32")
    found = mixing_seconds(one, H100)
    assert found.posted == pytest.approx((posted, 2 * posted))
    # Attention has no window: what it posts waits.
    assert found.waits == pytest.approx((2 * 3 * block / rate + posted, 2 * (2 * 3 * block / rate + posted)))


def test_what_mhc_posts_is_its_mixing() -> None:
    """M X and Sinkhorn's iterations; a write, a read, Q x and squares wait."""
    one = config("mhc")
    tokens, block, rate = local_tokens(one), block_bytes(one), H100.memory_rate
    posted = (8 * block + 4 * tokens * 39 * 3 * 16) / rate
    products = 2 * tokens * 4 * 1024 * 24 / H100.flops("fp32")
    waits = (9 + 5) * block / rate + 4 * tokens * (2 * 4 * 1024 + 24) / rate + products
    found = mixing_seconds(one, H100)
    assert found.posted[0] == pytest.approx(posted)
    assert found.waits[0] == pytest.approx(2 * waits + posted)
    # Inline mixing and writing are one pass, which saves a pass over the blocks.
    inline = mixing_seconds(config("mhc", "inline"), H100)
    assert inline.posted == (0.0, 0.0)
    assert inline.waits[0] == pytest.approx(2 * (waits + posted - 8 * block / rate))


def test_a_window_hides_what_is_posted_and_no_more() -> None:
    for variant in ("mhc", "mhc_single_pass", "independent_hc", "gated_residual"):
        one = config(variant)
        plan, seconds = planned_on(one), mixing_seconds(one, H100)
        window = plan.moe_window
        assert window is not None
        assert (window.needs, window.waits) == (seconds.posted[0], seconds.waits[0])
        pairs = zip(seconds.waits, seconds.posted, strict=True)
        exposed = sum(waits + max(0.0, posted - window.idle) for waits, posted in pairs)
        layers, batches = 8, 64 // 16
        assert plan.slowest.busy.mixing == pytest.approx(layers * batches * exposed)


def test_a_recomputed_step_mixes_once_more() -> None:
    """In the layer's own forward pass, and to build the states of the segment."""
    one = config("mhc", train={"recompute": "full"})
    seconds = mixing_seconds(one, H100)
    more = planned_on(one).slowest.busy.mixing - planned_on(config("mhc")).slowest.busy.mixing
    again = seconds.waits[0] + seconds.waits[0] + seconds.posted[0]
    assert more == pytest.approx(8 * 4 * again)


def test_states_of_recomputed_steps() -> None:
    """16 steps in segments of 4: an output of each but the last, which is written, the blocks that the chunk begins
    with and the first state of three segments more. When the last step is recomputed, three more of its segment are
    there; when the sixth is, one more of the second segment, and nothing of the last two."""
    chunk, train = ChunkLayers(range(8), first=True, last=True), {"recompute": "full"}
    for variant, blocks in (("mhc", 4), ("mhc_single_pass", 5)):
        one = config(variant, train=train)
        block, step = block_bytes(one), token_step(one)
        assert step is not None
        state = blocks * block + 4 * 4 * local_tokens(one)
        assert recomputed_bytes(one, chunk) == pytest.approx((15 * block, 4 * block + 3 * state))
        assert recomputing_bytes(one, chunk, 15) == pytest.approx((15 + 4) * block + (3 + 3) * state)
        assert recomputing_bytes(one, chunk, 5) == pytest.approx((6 + 4) * block + (1 + 1) * state)
        held = kept_bytes(one, step.kept) + kept_bytes(one, step.backward)
        assert recomputed_step_bytes(one, ends=False) == held + 4 * block
        assert recomputed_step_bytes(one, ends=True) == held
        inline = config(variant, "inline", train=train)
        step = token_step(inline)
        assert step is not None
        assert recomputed_bytes(inline, chunk) == (16 * block, 16 * (blocks - 1) * block)
        assert recomputing_bytes(inline, chunk, 5) == 6 * blocks * block
        # The stream that it starts from is the state. Its gradient is as large.
        held = kept_bytes(inline, replace(step.kept, blocks=5)) + kept_bytes(inline, step.backward)
        assert recomputed_step_bytes(inline, ends=False) == held


def test_states_of_steps_that_share_a_pass() -> None:
    """Segments begin at steps 0, 4, 8 and 12: their passes also hold the second step's read. Of the other steps of the
    last segment, 14 begins with blocks of its own."""
    chunk, one = ChunkLayers(range(8), first=True, last=True), config("altup", train={"recompute": "full"})
    block = block_bytes(one)
    assert recomputed_bytes(one, chunk) == (15 * block, (4 + 3 * (5 + 1)) * block)
    assert recomputing_bytes(one, chunk, 15) == (15 + 4 + 3 * (5 + 1) + 5 + 3) * block


def test_what_is_kept_is_in_bytes() -> None:
    one = config("mhc")
    assert kept_bytes(one, Kept(1, 2, 3)) == 2 * 1024 * 1024 + 4 * (2 * 1024 + 3)


def on_cpu(variant: str, mixing: str = "deferred", **rows: Any) -> StepPlan:
    calls = {key: rows.pop(key) for key in list(rows) if key in cpu.CALLS}
    model = replace(cpu.costing("pieces_ns", **rows), calls_us={**cpu.FREE.calls_us, **calls})
    sections: Any = {"altup": {**BRANCH, "variant": variant}, "overlap": {"mixing": mixing}}
    return cpu.on(model, cpu.run(**sections))


@pytest.mark.parametrize(
    ("variant", "mixing", "mixed", "written"),
    [
        ("mhc", "deferred", 4 + 16, 4),
        ("mhc", "inline", 4 + 16, 4),
        ("mhc_single_pass", "deferred", 1 + 20, 1 + 4),
        ("independent_hc", "deferred", 4, 4),
        ("gated_residual", "deferred", 0, 4),
    ],
)
def test_pieces_of_a_step_of_one_core(variant: str, mixing: str, mixed: int, written: int) -> None:
    numbers = 2 * cpu.LAYERS * cpu.BATCHES * cpu.TOKENS * 128
    assert on_cpu(variant, mixing, token_mix=(1.0, 2.0)).seconds == pytest.approx(3e-9 * numbers * mixed)
    assert on_cpu(variant, mixing, token_write=(1.0, 2.0)).seconds == pytest.approx(3e-9 * numbers * written)


def test_calls_of_sinkhorns_iterations() -> None:
    plan = on_cpu("mhc", iteration=(1.0, 2.0))
    assert plan.seconds == pytest.approx(1e-6 * 39 * 3 * 2 * cpu.LAYERS * cpu.BATCHES)
    assert on_cpu("independent_hc", iteration=(1.0, 2.0)).seconds == pytest.approx(0, abs=1e-12)


def test_a_file_measured_before_lacks_them(tmp_path: Any) -> None:
    made = cpu.cluster(cpu.FREE)
    text = "\n".join(
        line for line in cpu.cluster_yaml(made).splitlines() if line.split(":")[0].strip() not in TOKEN_COSTS
    )
    (tmp_path / "old.yaml").write_text(text)
    old = cpu.cluster_from(cpu.read_yaml(tmp_path / "old.yaml"), "old")
    assert old.cpu_cost_model is not None
    assert cpu.on(old.cpu_cost_model, cpu.run(altup={"width": 4})).seconds == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError) as refused:
        cpu.on(old.cpu_cost_model, cpu.run(altup={**BRANCH, "variant": "mhc"}))
    assert str(refused.value) == (
        "cluster.cpu_cost_model='measured before': has no token_mix, token_write, iteration, which altup.variant=mhc "
        "needs; altup-moe plan measure writes them"
    )


@pytest.mark.parametrize(
    ("variant", "says"),
    [("mhc", "us wait for outputs"), ("independent_hc", "an MoE layer's: "), ("hc", "us, the window")],
)
def test_a_report_says_what_waits(variant: str, says: str) -> None:
    one = config(variant)
    lines = [line for line in plan_lines(one, H100, planned_on(one)) if line.startswith("mixing")]
    assert any(says in line for line in lines), lines


def test_a_narrow_stream_has_no_such_step() -> None:
    assert token_step(RunConfig(altup=AltUpConfig(width=1, variant="mhc", level="branch"))) is None
