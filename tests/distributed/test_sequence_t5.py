"""Strided layers of the encoder-decoder under layouts: gradients and losses equal the reference's.

Encoder samples end in padding of all lengths, inside windows and at their borders; routing is skewed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from altup_moe.config import RunConfig
from altup_moe.model.sequence_layer import SequenceLayer
from tests.distributed.cases import small_t5, with_layout, world_size
from tests.distributed.gradients import layout_step, worst_difference
from tests.distributed.ranks import run_fresh_ranks
from tests.distributed.runs import losses, text_run, train_on_ranks
from tests.distributed.test_gradients import _reference, assert_parity
from tests.distributed.test_sequence import without_the_tag

pytestmark = pytest.mark.distributed

ENCODER: dict[str, Any] = {"stride": 4, "layers": "1..-1"}
BOTH: dict[str, Any] = {"stride": 2, "layers": "0..-1", "decoder_layers": "0..-1"}
METHODS = ("altup", "stride_and_skip", "average_pool")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["one", "tp2"])
def test_methods(layout: str, method: str) -> None:
    """Every layer of both stacks. `tp2` has sequence parallelism: slices of 8 and 6 tokens."""
    config = small_t5(layout, altup={"width": 1}, sequence={**BOTH, "method": method})
    assert_parity(config, world_size(layout))


@pytest.mark.parametrize(("layout", "method"), [("dp2", "average_pool"), ("ep2", "altup"), ("tp2-ep2", "altup")])
def test_encoders_of_wide_streams(layout: str, method: str) -> None:
    altup = {"width": 4, "recycled": False, "cross_attention": "wide"}
    assert_parity(small_t5(layout, altup=altup, sequence={**ENCODER, "method": method}), world_size(layout))


WAYS: dict[str, dict[str, Any]] = {
    "full, halves": {"train": {"recompute": "full"}, "overlap": {"microbatch_halves": True}},
    "full, inline": {"train": {"recompute": "full"}, "overlap": {"mixing": "inline"}},
    "selective, capacity": {"train": {"recompute": "selective"}, "moe": {"capacity_factor": 1.0, "layer_freq": 1}},
}


@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str) -> None:
    """Pooling reads a mask that halves cut along the batch and tensor ranks along the sequence."""
    sequence = {**ENCODER, "method": "average_pool"}
    assert_parity(small_t5("tp2-ep1", sequence=sequence, **WAYS[way]), 2)


def _with_the_first_ranks_padding(config: RunConfig):
    import altup_moe.model.sequence_layer as module

    module.on_tensor_rank = lambda mask, config, group: mask.chunk(group.size(), dim=1)[0]
    return layout_step(config)


def _with_neighbours_a_token_apart(config: RunConfig):
    real = SequenceLayer.forward

    def forward(self: SequenceLayer, hidden_states, attention_bias=None, **kwargs):
        return real(self, hidden_states, attention_bias=partial(_unstrided, attention_bias), **kwargs)

    SequenceLayer.forward = forward
    return layout_step(config)


def _unstrided(bias, length: int, stride: int):
    return bias(length)


@pytest.mark.parametrize(
    ("broken", "method"),
    [
        (without_the_tag, "altup"),
        (_with_the_first_ranks_padding, "average_pool"),
        (_with_neighbours_a_token_apart, "stride_and_skip"),
    ],
)
def test_notices(broken, method: str) -> None:
    """The comparisons above are worth something: break one part, and they fail."""
    config = small_t5("tp2", altup={"width": 1}, sequence={**BOTH, "method": method})
    _, expected = _reference(with_layout(config, "one"))
    assert worst_difference(expected, run_fresh_ranks(2, broken, config))[0] > 1e-3


def _run(layout: str, directory: Path, name: str, **sections: Any) -> RunConfig:
    """20 steps of span corruption."""
    sizes = {"vocab_size": 320, "seq_length": 32, "decoder_seq_length": 16}
    model = {**vars(small_t5(layout).model), **sizes}
    sequence = {"stride": 4, "layers": "0..-2", "decoder_layers": "1..1"}
    return text_run(
        layout, directory, name, model=model, altup={"width": 2}, sequence=sequence, data={"sentinels": 20}, **sections
    )


def _sharded(config: RunConfig) -> RunConfig:
    return replace(config, parallel=replace(config.parallel, distributed_optimizer=True, overlap_grad_reduce=True))


@pytest.mark.long
def test_every_layout_has_one_curve(tmp_path: Path) -> None:
    """On one rank, and on four sharded and recomputed; stopped there, it goes on as it would have."""
    sharded = {"checkpoint": {"save_interval": 10}, "train": {"recompute": "full"}}
    one = _run("one", tmp_path, "one")
    four, cut = (_sharded(_run("tp2-ep2", tmp_path, name, **sharded)) for name in ("four", "cut"))
    for layout, config in (("one", one), ("tp2-ep2", four)):
        assert set(train_on_ranks(layout, config)) == {0}
    expected = losses(one)
    assert len(expected) == 20
    assert expected[-1] < expected[0] - 0.3
    assert losses(four) == pytest.approx(expected, rel=1e-4)
    for stop in (10, None):
        assert set(train_on_ranks("tp2-ep2", replace(cut, train=replace(cut.train, stop_after=stop)))) == {0}
    assert losses(cut) == losses(four)
