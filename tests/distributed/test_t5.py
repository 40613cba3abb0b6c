"""The encoder-decoder under every layout that it has: gradients of one step against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.distributed.cases import LAYOUTS, small_t5, world_size
from tests.distributed.gradients import layout_step, reference_step, worst_difference
from tests.distributed.ranks import run_ranks
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

WIDE = {"width": 4, "recycled": False, "cross_attention": "wide"}
STREAMS: dict[str, dict[str, Any]] = {
    "plain": {"width": 1},
    "recycled": {"width": 2},
    "recycled, wide context": {"width": 2, "cross_attention": "wide"},
    "wide tables, narrow context": {"width": 2, "recycled": False, "variant": "round_robin"},
    "wide": WIDE,
}


@pytest.mark.parametrize("stream", STREAMS)
def test_one_rank(stream: str) -> None:
    assert_parity(small_t5("one", altup=STREAMS[stream]), 1)


@pytest.mark.parametrize("layout", ["dp2", "tp2", "ep2", "tp2-ep2"])
@pytest.mark.parametrize("stream", ["plain", "wide"])
def test_layouts(layout: str, stream: str) -> None:
    assert_parity(small_t5(layout, altup=STREAMS[stream]), world_size(layout))


FEATURES: dict[str, dict[str, Any]] = {
    "full recomputation": {"train": {"recompute": "full"}},
    "full recomputation of halves": {"train": {"recompute": "full"}, "overlap": {"microbatch_halves": True}},
    "full recomputation, inline": {"train": {"recompute": "full"}, "overlap": {"mixing": "inline"}},
    "selective recomputation": {"train": {"recompute": "selective"}},
    "halves": {"overlap": {"microbatch_halves": True}},
    "blocking, inline": {"overlap": {"mixing": "inline", "exchange": "blocking"}},
    "tied": {"model": {"share_embeddings_and_output_weights": True}},
    "capacity": {"moe": {"capacity_factor": 1.0}},
    "sum": {"altup": {"variant": "sum", "recycled": False}},
    "gemma, same": {"altup": {"variant": "gemma", "select": "same"}},
    "sigmoid, bias, shared": {
        "moe": {"score_function": "sigmoid", "expert_bias_update_rate": 1e-2, "shared_expert_size": 16}
    },
    "dense, deeper decoder": {"moe": {"num_experts": 0}, "model": {"num_layers": 1, "num_decoder_layers": 3}},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature: str) -> None:
    """On tensor ranks under sequence parallelism, each with whole experts."""
    sections = FEATURES[feature]
    altup = {"width": 2, "cross_attention": "wide", **sections.get("altup", {})}
    assert_parity(small_t5("tp2-ep1", **{**sections, "altup": altup}), 2)


@pytest.mark.parametrize("layout", ["dp2", "tp2-ep2"])
def test_distributed_optimizer(layout: str) -> None:
    """Its overlapped reduction has to know that the relative biases are used in every layer."""
    parallel = {"distributed_optimizer": True, "overlap_grad_reduce": True}
    assert_parity(small_t5(layout, parallel=parallel, train={"recompute": "full"}), world_size(layout))


def _step_with_bias_of_rank_0(config):
    """`layout_step` in which the second tensor rank takes the first one's heads of the relative biases."""
    import altup_moe.model.build as build

    pieces = build.pieces

    def first(name, offset, shard, config):
        return pieces(name, offset, replace(shard, tensor=(0, 2)) if "_bias.weight" in name else shard, config)

    build.pieces = first
    return layout_step(config)


def test_notices_another_ranks_biases() -> None:
    config = small_t5("tp2")
    _, expected = reference_step(replace(config, parallel=LAYOUTS["one"]))
    ranks = run_ranks(2, _step_with_bias_of_rank_0, config)
    with pytest.raises(AssertionError, match="no rank holds"):
        worst_difference(expected, ranks)
