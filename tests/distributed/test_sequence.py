"""Strided layers in every kind of layout: gradients and losses equal the reference's, with skewed routing."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.config import RunConfig
from altup_moe.model.sequence_layer import SequenceLayer
from tests.distributed.cases import small, with_layout, with_long, world_size
from tests.distributed.gradients import layout_step, worst_difference
from tests.distributed.ranks import run_fresh_ranks, run_ranks
from tests.distributed.runs import losses, text_run, train_on_ranks
from tests.distributed.test_gradients import _reference, assert_parity

pytestmark = pytest.mark.distributed

METHODS = ("altup", "stride_and_skip", "average_pool")
STRIDED = {"stride": 4, "layers": "1..-2"}
EVERY = {"stride": 4, "layers": "0..-1"}


LAYOUTS = ["one", "dp2", "tp2", "pp2", "pp2-vpp2", "ep2", "cp2", "tp2-pp2-ep2"]
WIDTHS = [*((layout, 4) for layout in LAYOUTS), ("tp2-pp2-ep2", 1)]


@pytest.mark.parametrize(("layout", "width"), with_long(WIDTHS, [(layout, 1) for layout in LAYOUTS[:-1]]))
def test_layouts(layout: str, width: int) -> None:
    assert_parity(small(layout, altup={"width": width}, sequence=STRIDED), world_size(layout))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", ["tp2", "tp2-pp2-ep2"])
def test_methods(layout: str, method: str) -> None:
    assert_parity(small(layout, sequence={**EVERY, "method": method}), world_size(layout))


WAYS = {
    "full": {"train": {"recompute": "full"}},
    "selective": {"train": {"recompute": "selective"}},
    "halves": {"overlap": {"microbatch_halves": True}},
    "halves, full": {"overlap": {"microbatch_halves": True}, "train": {"recompute": "full"}},
    "capacity": {"moe": {"layer_freq": 1, "capacity_factor": 1.0}},
    "inline": {"overlap": {"mixing": "inline", "exchange": "blocking"}},
    "torch experts": {"moe": {"backend": "torch"}},
    "sharded": {"parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True}},
}


NARROW = ("selective", "halves, full")


@pytest.mark.parametrize(
    ("width", "way"),
    with_long(
        [*((4, way) for way in WAYS), *((1, way) for way in NARROW)], [(1, way) for way in WAYS if way not in NARROW]
    ),
)
def test_ways(width: int, way: str) -> None:
    assert_parity(small("tp2-ep2", altup={"width": width}, sequence=STRIDED, **WAYS[way]), world_size("tp2-ep2"))


def test_inside_a_dynamic_stream_beside_partial_experts() -> None:
    config = small("tp2-ep2", altup={"variant": "dynamic"}, sequence=STRIDED, moe={"partial": True})
    assert_parity(config, world_size("tp2-ep2"))


def test_tensor_and_context_ranks() -> None:
    """Chunks of 4 tokens a tensor rank, of 4 a zigzag half: each begins at an anchor."""
    assert_parity(small("one", parallel={"tensor": 2, "context": 2}, sequence=EVERY), 4)


@pytest.mark.parametrize("way", ["full", "halves"])
def test_pooling_over_ranks_in_ways(way: str) -> None:
    assert_parity(small("tp2", sequence={**EVERY, "method": "average_pool"}, **WAYS[way]), 2)


def without_the_tag(config: RunConfig):
    """A step whose coefficients' gradients stay partial."""
    real = SequenceLayer.__init__

    def untagged(self: SequenceLayer, *args, **kwargs) -> None:
        real(self, *args, **kwargs)
        for parameter in self.sequence.values():
            parameter.sequence_parallel = False

    SequenceLayer.__init__ = untagged
    return layout_step(config)


def _without_the_neighbour(config: RunConfig):
    SequenceLayer._before = lambda self, x: None
    return layout_step(config)


def _with_the_first_rows_of_rotary(config: RunConfig):
    real = SequenceLayer.forward

    def forward(self: SequenceLayer, hidden_states, rotary_pos_emb, **kwargs):
        rows = rotary_pos_emb[: len(rotary_pos_emb) // self.stride].repeat_interleave(self.stride, dim=0)
        return real(self, hidden_states, rotary_pos_emb=rows, **kwargs)

    SequenceLayer.forward = forward
    return layout_step(config)


@pytest.mark.parametrize(
    ("broken", "method"),
    [
        (without_the_tag, "altup"),
        (_without_the_neighbour, "average_pool"),
        (_with_the_first_rows_of_rotary, "stride_and_skip"),
    ],
)
def test_notices(broken, method: str) -> None:
    """The comparisons above are worth something: break one part, and they fail."""
    config = small("tp2", sequence={**EVERY, "method": method})
    _, expected = _reference(with_layout(config, "one"))
    assert worst_difference(expected, run_ranks(2, layout_step, config))[0] < 1e-5
    assert worst_difference(expected, run_fresh_ranks(2, broken, config))[0] > 1e-3


@pytest.mark.parametrize("way", ["bf16", "dropout, recomputed"])
def test_resume_is_exact(way: str, tmp_path: Path) -> None:
    train: dict = {"steps": 8, **({"precision": "bf16"} if way == "bf16" else {"recompute": "full"})}
    model = {} if way == "bf16" else {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    sections = {"model": model, "altup": {"width": 1}, "sequence": STRIDED}
    whole, cut = (text_run("ep2", tmp_path, name, train=train, **sections) for name in ("whole", "cut"))
    stopped = text_run("ep2", tmp_path, "cut", train={**train, "stop_after": 3}, **sections)
    for config in (whole, stopped, cut):
        assert set(train_on_ranks("ep2", config)) == {0}
    assert len(losses(whole)) == 8
    assert losses(cut) == losses(whole)


def test_every_layout_has_one_curve(tmp_path: Path) -> None:
    """On text, K = 4: on one rank, on four, and stopped and resumed on two others."""
    sections: dict = {"altup": {"width": 4}, "sequence": STRIDED, "train": {"stop_after": 10}}
    one, four, cut = (text_run(name, tmp_path, name, **sections) for name in ("one", "tp2-pp2-ep2", "ep2"))
    for name, config in (("one", one), ("tp2-pp2-ep2", four)):
        assert set(train_on_ranks(name, config)) == {0}
    expected = losses(one)
    assert len(expected) == 10
    assert expected[-1] < expected[0] - 0.1
    assert losses(four) == pytest.approx(expected, rel=1e-4)
    stopped = text_run("ep2", tmp_path, "ep2", **{**sections, "train": {"stop_after": 5}})
    assert set(train_on_ranks("ep2", stopped)) == {0}
    assert set(train_on_ranks("tp2", with_layout(cut, "tp2"))) == {0}
    assert losses(cut) == pytest.approx(expected, rel=1e-4)
