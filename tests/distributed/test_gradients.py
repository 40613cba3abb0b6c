"""Every layout's gradients equal the reference's: all parameters, all replicas, skewed routing, fp32."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from altup_moe.config import RunConfig
from tests.distributed.cases import LAYOUTS, lopsided, micro_batch_count, skewed, small, with_long, world_size
from tests.distributed.gradients import (
    batch_of,
    layout_step,
    layout_step_without,
    longer_batch_of,
    reference_losses,
    reference_model,
    reference_step,
    worst_difference,
)
from tests.distributed.ranks import run_fresh_ranks, run_ranks

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-5


READS_EQUAL_BLOCKS = ("mhc", "mhc_single_pass", "independent_hc", "wide_residual", "wide_residual_kept")
"""Variants whose first step of a recycled stream has no gradient but rounding: it reads and mixes equal blocks, and the
norm of a branch sees no factor. Their streams with wide tables have all gradients."""


def without_first_step(expected: dict, ranks: list) -> tuple[dict, list]:
    """Gradients but those of the first step's coefficients."""
    first = "model.layers.0.altup."

    def compared(name: str) -> bool:
        return not name.startswith(first) or name.startswith(first + "mlp.")

    kept = [(loss, [entry for entry in gradients if compared(entry[0])]) for loss, gradients in ranks]
    return {name: value for name, value in expected.items() if compared(name)}, kept


@functools.cache
def _reference(config: RunConfig, weights=skewed):
    return reference_step(config, weights)


def assert_parity(config: RunConfig, size: int, weights=skewed, step=layout_step) -> None:
    """Loss and gradients of one step on `size` ranks against the reference."""
    # The reference is one process: its step does not depend on the layout, and is computed once a model.
    plain = replace(config, parallel=LAYOUTS["one"], train=replace(config.train, recompute="none"))
    loss, expected = _reference(plain, weights)
    ranks = run_ranks(size, step, config, weights)
    if config.altup.recycled and config.altup.variant in READS_EQUAL_BLOCKS:
        expected, ranks = without_first_step(expected, ranks)
    for rank, (got, _) in enumerate(ranks):
        assert got == pytest.approx(loss, rel=TOLERANCE), f"loss on rank {rank}"
    difference, where = worst_difference(expected, ranks)
    assert difference <= TOLERANCE, f"{where}: relative difference {difference:.2e}"


# One block has no mixing: what it adds to wider ones is only that a layer runs without.
ONE_BLOCK = ("one", "pp2-vpp2", "cp2", "tp2-pp2-ep2")
# What a layout does with blocks the case of two shows; four are other numbers of the same code.
FOUR_BLOCKS = ("one", "pp2-vpp2", "cp4", "tp2-ep2", "tp2-pp2-ep2")
WIDTHS = [
    *(pytest.param(layout, 2, marks=pytest.mark.quick) for layout in LAYOUTS),
    *((layout, 4) for layout in FOUR_BLOCKS),
    *((layout, 1) for layout in ONE_BLOCK),
]
WIDTHS_LONG = [
    *((layout, 4) for layout in LAYOUTS if layout not in FOUR_BLOCKS),
    *((layout, 1) for layout in LAYOUTS if layout not in ONE_BLOCK),
]


@pytest.mark.parametrize(("layout", "width"), with_long(WIDTHS, WIDTHS_LONG))
def test_layouts(layout: str, width: int) -> None:
    assert_parity(small(layout, altup={"width": width}), world_size(layout))


@pytest.mark.parametrize("layout", ["one", "tp2-ep1", "pp2-vpp2", "tp2-pp2-ep2"])
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recompute(layout: str, recompute: str) -> None:
    assert_parity(small(layout, train={"recompute": recompute}), world_size(layout))


SHARDED = ["dp2", "ep2", "tp2-ep1", "tp2-ep2", "dp2-pp2", "cp2"]
SHARDED_LONG = [(layout, False) for layout in SHARDED if layout != "tp2-ep2"]


@pytest.mark.parametrize(
    ("layout", "overlap"), with_long([*((layout, True) for layout in SHARDED), ("tp2-ep2", False)], SHARDED_LONG)
)
def test_distributed_optimizer(layout: str, overlap: bool) -> None:
    parallel = {"distributed_optimizer": True, "overlap_grad_reduce": overlap}
    assert_parity(small(layout, parallel=parallel), world_size(layout))


TOKENS_WIDE = {"level": "branch", "width": 4, "recycled": False}
VARIANTS = {
    "gemma": {"altup": {"variant": "gemma"}},
    "round_robin": {"altup": {"variant": "round_robin"}},
    "sum": {"altup": {"variant": "sum", "recycled": False}},
    "same": {"altup": {"select": "same"}},
    "wide tables": {"altup": {"recycled": False, "width": 4}},
    "K=8": {"altup": {"width": 8}},
    "tied": {"model": {"share_embeddings_and_output_weights": True}},
    "tied wide": {"model": {"share_embeddings_and_output_weights": True}, "altup": {"recycled": False}},
    "dense": {"moe": {"num_experts": 0}},
    "all experts": {"moe": {"layer_freq": 1, "top_k": 1}},
    "capacity": {"moe": {"capacity_factor": 1.0}},
    "balance over steps": {"moe": {"load_balancing_type": "global_aux_loss"}},
    "all-gather": {"moe": {"dispatcher": "allgather"}},
    "sigmoid, bias, shared": {
        "moe": {"score_function": "sigmoid", "expert_bias_update_rate": 1e-2, "shared_expert_size": 16}
    },
    "partial experts": {
        "moe": {"partial": True, "num_experts": 128, "top_k": 1, "ffn_hidden_size": 16, "layer_freq": 1}
    },
    "hc": {"altup": {"variant": "hc"}},
    # The norm in a layer sees no factor, so that a read of four nearly equal blocks has nearly no gradient; those of
    # wide tables differ.
    "hc, wide tables": {"altup": {"variant": "hc", "width": 4, "recycled": False}},
    "branches": {"altup": {"level": "branch"}},
    "branches, gemma same": {"altup": {"level": "branch", "variant": "gemma", "select": "same", "width": 4}},
    # Here wide tables for the same reason, at any width: the norm is the first thing in a branch.
    "branches, hc": {"altup": {"level": "branch", "variant": "hc", "width": 4, "recycled": False}},
    "branches, round_robin": {"altup": {"level": "branch", "variant": "round_robin", "recycled": False}},
    "branches, dynamic": {"altup": {"level": "branch", "variant": "dynamic", "width": 4}},
    "mhc": {"altup": {"level": "branch", "variant": "mhc", "width": 4}},
    "mhc, wide tables": {"altup": {**TOKENS_WIDE, "variant": "mhc"}},
    "mhc_single_pass": {"altup": {"level": "branch", "variant": "mhc_single_pass", "width": 4}},
    "mhc_single_pass, wide tables": {"altup": {**TOKENS_WIDE, "variant": "mhc_single_pass"}},
    "independent_hc": {"altup": {"level": "branch", "variant": "independent_hc", "width": 4}},
    "gated_residual": {"altup": {"level": "branch", "variant": "gated_residual", "width": 4}},
    "wide_residual": {"altup": {"variant": "wide_residual", "width": 4}},
    "branches, wide_residual_kept": {"altup": {"level": "branch", "variant": "wide_residual_kept", "width": 4}},
    "dynamic": {"altup": {"variant": "dynamic", "width": 4}},
    "dynamic, clipped, tied": {
        "altup": {"variant": "dynamic", "select": "same", "coef_clip": 0.3},
        "model": {"share_embeddings_and_output_weights": True},
    },
}


# Tensor ranks with whole experts: for what has to do with experts or tables.
WHOLE_EXPERTS = ("tied wide", "all experts", "sigmoid, bias, shared", "partial experts", "dynamic, clipped, tied")


@pytest.mark.parametrize(
    ("variant", "layout"),
    with_long(
        [
            *((variant, layout) for variant in VARIANTS for layout in ("one", "tp2-pp2-ep2")),
            *((variant, "tp2-ep1") for variant in WHOLE_EXPERTS),
        ],
        [(variant, "tp2-ep1") for variant in VARIANTS if variant not in WHOLE_EXPERTS],
    ),
)
def test_variants(variant: str, layout: str) -> None:
    config = small(layout, **VARIANTS[variant])
    if config.moe.num_experts == 0 and layout != "one":
        # Without experts the same ranks are tensor, pipeline and data ranks.
        config = replace(config, parallel=replace(config.parallel, expert=1))
    assert_parity(config, world_size(layout))


LOPSIDED: list[tuple[str, dict]] = [
    ("ep2", {}),
    ("ep4", {"altup": {"width": 4}}),
    ("ep4", {"moe": {"backend": "torch"}}),
    ("tp2-ep2", {"moe": {"capacity_factor": 1.0}}),
    ("tp2-ep2", {"overlap": {"microbatch_halves": True}}),
    ("tp2-pp2-ep2", {"train": {"recompute": "full"}}),
    ("dp4-ep2-etp2", {}),
]


@pytest.mark.parametrize(("layout", "ways"), LOPSIDED)
def test_one_expert_gets_most_tokens(layout: str, ways: dict) -> None:
    """Expert 0 is among the two of nearly every token, so that one expert rank has most of the rows."""
    config = small(layout, **ways)
    model = reference_model(config, lopsided)
    for index in range(micro_batch_count(config)):
        batch = batch_of(config, index)
        for counts in reference_losses(model, batch).counts.values():
            assert counts[0] >= 0.9 * int((~batch.padding_mask).sum())
    assert_parity(config, world_size(layout), lopsided)


@pytest.mark.parametrize(
    ("layout", "backend"),
    [("one", "megatron"), ("tp2-ep1", "torch"), ("cp2", "megatron"), ("tp2-pp2-ep2", "megatron"), ("ep2", "deepspeed")],
)
def test_padding_takes_no_place_and_counts_nowhere(layout: str, backend: str) -> None:
    """Samples in rows twice as long: loss and gradients are those of rows that they fill, with a short capacity too."""
    if backend == "deepspeed":
        pytest.importorskip("deepspeed")
    moe = {"capacity_factor": 1.0, "backend": backend}
    if backend == "megatron" and layout == "tp2-pp2-ep2":
        moe["load_balancing_type"] = "global_aux_loss"
    short = small("one", moe=moe)
    loss, expected = _reference(replace(short, moe=replace(short.moe, backend="megatron")))
    longer = small(layout, moe=moe, model={"seq_length": 2 * short.model.seq_length})
    ranks = run_ranks(world_size(layout), layout_step, longer, skewed, longer_batch_of)
    for got, _ in ranks:
        assert got == pytest.approx(loss, rel=TOLERANCE)
    difference, where = worst_difference(expected, ranks)
    assert difference <= TOLERANCE, f"{where}: relative difference {difference:.2e}"


ATTENTION = {"qk_layernorm": True, "kv_channels": 12, "rotary_scaling_factor": 8.0}
"""Heads wider than hidden_size / num_attention_heads, norms of queries and keys, and stretched RoPE."""


ATTENDED = ["one", "tp2", "pp2", "tp2-pp2-ep2", "cp2"]


@pytest.mark.parametrize(
    ("layout", "recompute"),
    with_long(
        [*((layout, "none") for layout in ATTENDED), ("tp2-pp2-ep2", "full")],
        [(layout, "full") for layout in ATTENDED if layout != "tp2-pp2-ep2"],
    ),
)
def test_attention(layout: str, recompute: str) -> None:
    assert_parity(small(layout, model=ATTENTION, train={"recompute": recompute}), world_size(layout))


CHUNKED = [("tp2", {}), ("tp2-pp2-ep2", {"model": {"share_embeddings_and_output_weights": True}}), ("cp2", {})]


@pytest.mark.parametrize(("layout", "model"), CHUNKED)
def test_losses_in_chunks(layout: str, model: dict) -> None:
    """Five positions at a time: the last chunk is shorter."""
    assert_parity(small(layout, train={"loss_chunk": 5}, **model), world_size(layout))


@pytest.mark.parametrize("layout", ["tp2", "cp2"])
def test_compiled_regions(layout: str) -> None:
    """Norms of a slice of the sequence, a vocabulary that ranks share; angles of a context rank."""
    assert_parity(small(layout, train={"compile": True}), world_size(layout))


NEWER_VARIANTS = (
    "dynamic",
    "hc, wide tables",
    "branches, hc",
    "mhc, wide tables",  # g of each token travels
    "mhc_single_pass, wide tables",  # and the next input, between stages too
    "gated_residual",  # no read of blocks
)


@pytest.mark.parametrize(
    ("layout", "ways"),
    [
        ("tp2", {"train": {"recompute": "selective"}}),
        ("pp2", {"overlap": {"microbatch_halves": True}, "train": {"recompute": "full"}}),
        ("pp2-vpp2", {"train": {"recompute": "full"}}),
        ("ep2", {"parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True}}),
        ("tp2-ep2", {"overlap": {"microbatch_halves": True}}),
        ("cp2", {"parallel": {"distributed_optimizer": True}}),
    ],
)
@pytest.mark.parametrize("variant", NEWER_VARIANTS)
def test_ways_of_the_newer_variants(variant: str, layout: str, ways: dict) -> None:
    assert_parity(small(layout, **VARIANTS[variant], **ways), world_size(layout))


REDUCTIONS = {
    "data-parallel gradients": "dp2",
    "sequence-parallel gradients": "tp2",
    "query and key norms' gradients over tensor ranks": "tp2",
    "expert gradients over tensor ranks": "tp2-ep1",
    "tied embedding over stages": "pp2",
}


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_notices_a_missing_reduction(reduction: str) -> None:
    """The comparison above is worth something: take one reduction away, and it fails."""
    layout = REDUCTIONS[reduction]
    model = ATTENTION if "norms" in reduction else {"share_embeddings_and_output_weights": layout == "pp2"}
    config = small(layout, model=model)
    _, expected = _reference(replace(config, parallel=LAYOUTS["one"]))
    ranks = run_fresh_ranks(world_size(layout), layout_step_without, config, reduction)
    difference, _ = worst_difference(expected, ranks)
    assert difference > 1e-2


def test_differences_are_relative_to_what_the_micro_batches_add() -> None:
    expected = {"coefficient": torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)}

    def difference(*slices: tuple[int, int, list[float]]) -> float:
        return worst_difference(expected, [(0.0, [("coefficient", ((a, b),), np.array(got))]) for a, b, got in slices])[
            0
        ]

    assert difference((0, 2, [0.0, 2.0])) == 0
    assert difference((0, 2, [1e-3, 2.0])) == pytest.approx(1e-3 / 2)
    assert difference((0, 2, [0.0, 0.0])) == pytest.approx(1)
    assert difference((0, 1, [1e-3]), (1, 2, [2.0])) == pytest.approx(1e-3 / 2**0.5)
