"""The encoder-decoder under every layout that it has: gradients of one step against the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.inference.generate import continuation
from altup_moe.inference.load_run import load_run
from altup_moe.model.build import build_model
from altup_moe.moe.backends import BACKENDS
from altup_moe.parallel.topology import topology
from altup_moe.train.optim import connect_schedule
from altup_moe.train.routing import summarise_routing
from altup_moe.train.step import run_schedule
from tests.backends import installed
from tests.distributed.cases import micro_batch_count, skewed, small_t5, with_long, world_size
from tests.distributed.gradients import (
    batch_of,
    layout_step,
    longer_batch_of,
    reference_losses,
    reference_model,
    reference_step,
    worst_difference,
)
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import give_checkpoint, losses, text_run, train_on_ranks
from tests.distributed.test_gradients import TOLERANCE, assert_parity

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
    "loss in chunks": {"train": {"loss_chunk": 5}},
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


@pytest.mark.parametrize("backend", [installed(name) for name in BACKENDS if name != "megatron"])
def test_backends(backend: str) -> None:
    """Every one has the encoder-decoder's activation."""
    assert_parity(small_t5("tp2-ep2", moe={"backend": backend}), 4)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_takes_no_place_and_counts_nowhere(stride: int) -> None:
    """The encoder's and the decoder's; of strided layers the anchors'."""
    ways: dict[str, Any] = {
        "moe": {"capacity_factor": 1.0, "layer_freq": 1},
        "sequence": {"stride": stride, "layers": "1..-1", "decoder_layers": "1..-1"} if stride > 1 else {},
    }
    short = small_t5("one", **ways)
    lengths = {"seq_length": 2 * short.model.seq_length, "decoder_seq_length": 2 * short.model.decoder_length}
    longer = small_t5("tp2-ep2", model=lengths, **ways)
    loss, expected = reference_step(short)
    ranks = run_ranks(4, layout_step, longer, skewed, longer_batch_of)
    for got, _ in ranks:
        assert got == pytest.approx(loss, rel=TOLERANCE)
    difference, where = worst_difference(expected, ranks)
    assert difference <= TOLERANCE, f"{where}: relative difference {difference:.2e}"


def _routes(config: RunConfig) -> list[list[float]]:
    """On a rank: routes of every layer and expert in one step."""
    with topology(config.parallel) as topo:
        chunks = build_model(config, topo, skewed)
        connect_schedule(chunks, None, config)
        batches = [batch_of(config, n) for n in range(topo.data_rank, micro_batch_count(config), topo.data_size)]
        run_schedule(chunks, batches, config, topo)
        summary = summarise_routing(chunks, config, topo)
        assert summary is not None
        return summary.counts


def test_routes_are_counted_by_layer_through_both_stacks() -> None:
    config = small_t5("tp2-ep2")
    model, expected = reference_model(config), torch.zeros(5, 4)
    for index in range(micro_batch_count(config)):
        for layer, counts in reference_losses(model, batch_of(config, index)).counts.items():
            expected[layer] += counts
    assert expected.sum(1).count_nonzero() == 2
    for counts in run_ranks(4, _routes, config):
        assert counts == expected.tolist()


@pytest.mark.parametrize("layout", ["dp2", "tp2-ep2"])
def test_distributed_optimizer(layout: str) -> None:
    """Its overlapped reduction has to know that the relative biases are used in every layer."""
    parallel = {"distributed_optimizer": True, "overlap_grad_reduce": True}
    assert_parity(small_t5(layout, parallel=parallel, train={"recompute": "full"}), world_size(layout))


def corrupted_run(layout: str, directory: Path, name: str, **sections: Any) -> RunConfig:
    """20 steps of span corruption."""
    sizes = {"vocab_size": 320, "seq_length": 32, "decoder_seq_length": 16}
    model = {**vars(small_t5(layout).model), **sizes}
    return text_run(layout, directory, name, model=model, altup=WIDE, data={"sentinels": 20}, **sections)


def finish(layout: str, config: RunConfig) -> list[float]:
    """Losses of the run, trained to its end."""
    assert train_on_ranks(layout, config) == [0] * world_size(layout)
    return losses(config)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("t5")


@pytest.fixture(scope="module")
def one_rank(directory: Path) -> Callable[[str], list[float]]:
    """Losses on one rank, with experts or dense; trained once."""
    return cache(lambda name: finish("one", corrupted_run("one", directory, f"one-{name}", **KINDS[name])))


KINDS: dict[str, dict[str, Any]] = {"experts": {}, "dense": {"moe": {"num_experts": 0}}}
EARLY = 8
"""Steps that are compared where 20 are followed elsewhere."""
ZERO = with_long([("tp2-ep2", 1, "experts", "full")], [("dp2", 2, "experts", "none"), ("dp2", 3, "dense", "none")])


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
@pytest.mark.parametrize(("layout", "stage", "kind", "recompute"), ZERO)
def test_zero(layout: str, stage: int, kind: str, recompute: str, directory: Path, one_rank: Any) -> None:
    """DeepSpeed's engine follows Megatron's."""
    config = corrupted_run(layout, directory, f"zero{stage}", train={"stop_after": EARLY}, **KINDS[kind])
    config = replace(
        config,
        parallel=replace(config.parallel, zero_stage=stage),
        train=replace(config.train, engine="deepspeed", recompute=recompute),
    )
    assert finish(layout, config) == pytest.approx(one_rank(kind)[:EARLY], rel=1e-4)


def test_half_precision(directory: Path, one_rank: Any) -> None:
    train = {"precision": "bf16", "recompute": "full", "stop_after": EARLY}
    config = corrupted_run("tp2-ep2", directory, "bf16", train=train)
    config = replace(config, parallel=replace(config.parallel, distributed_optimizer=True))
    assert finish("tp2-ep2", config) == pytest.approx(one_rank("experts")[:EARLY], rel=0.02)


def test_twenty_losses_and_exact_resumption(tmp_path: Path, one_rank: Any) -> None:
    """One rank and four agree; a run that was cut writes what the whole one does; its checkpoint moves to one rank."""
    checkpoint = {"save_interval": 10}
    expected = one_rank("experts")
    assert expected[-1] < expected[0] - 0.5
    whole = corrupted_run("tp2-ep2", tmp_path, "whole", checkpoint=checkpoint)
    assert finish("tp2-ep2", whole) == pytest.approx(expected, rel=1e-4)
    cut = corrupted_run("tp2-ep2", tmp_path, "cut", checkpoint=checkpoint)
    give_checkpoint(whole, cut, 10)
    assert finish("tp2-ep2", cut) == losses(whole)[10:]
    moved = corrupted_run("one", tmp_path, "moved")
    give_checkpoint(whole, moved, 10)
    assert finish("one", moved) == pytest.approx(expected[10:], rel=1e-4)
    run = load_run(tmp_path / "moved")
    assert type(run.model).__name__ == "AltUpMoEForConditionalGeneration"
    # Twenty steps may teach it that the likeliest answer is none.
    assert any(continuation(run, "the for statement", 8, 1.0, 1.0, seed) for seed in range(4))
