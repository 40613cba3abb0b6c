"""Streams whose outputs are delayed (altup.correct): two steps under way compute what the reference computes.

With experts in every layer each of them has exchanges that others fill; with dense layers between, some take no turns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.config import RunConfig
from tests.distributed.cases import LAYOUTS, lopsided, small, with_long, world_size
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, text_run, train_on_ranks
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

EVERYWHERE = {"moe": {"layer_freq": 1}}
STREAMS = {
    "altup": {"width": 2},
    "plain": {"width": 1},
    "plain branches": {"width": 1, "level": "branch"},
    "altup, K=4": {"width": 4},
    "branches": {"width": 4, "level": "branch"},
    # A read of blocks that are equal at the start has no gradient but rounding: wide tables.
    "mhc_single_pass": {"variant": "mhc_single_pass", "level": "branch", "width": 4, "recycled": False},
    "hc": {"variant": "hc", "width": 4, "recycled": False},
    "gemma": {"variant": "gemma", "width": 4},
    "round_robin": {"variant": "round_robin"},
    "wide_residual_kept": {"variant": "wide_residual_kept", "level": "branch", "width": 4, "recycled": False},
}
"""Forms of streams. Those of `MANY` run in many layouts: an output that is masked, and a next input that travels.

Between stages `hc` and `wide_residual_kept` send what the next one reads beside what it mixes."""
MANY = ("altup", "mhc_single_pass")


def delayed(stream: str) -> dict:
    return {"altup": {**STREAMS[stream], "correct": "delayed"}}


IN_LAYOUTS = ("one", "tp2", "pp2-uneven", "pp2-vpp2", "ep2", "tp2-ep2", "cp2", "tp2-pp2-ep2", "dp4-ep2-etp2")


@pytest.mark.parametrize(
    ("stream", "layout"),
    with_long(
        [*(("altup", layout) for layout in IN_LAYOUTS), *((stream, "ep2") for stream in STREAMS if stream != "altup"),
         ("plain", "pp2-vpp2"), ("plain branches", "tp2-pp2-ep2"),
         ("mhc_single_pass", "pp2-vpp2"), ("mhc_single_pass", "tp2-pp2-ep2"), ("branches", "tp2-pp2-ep2"),
         ("hc", "pp2-vpp2"), ("wide_residual_kept", "tp2-pp2-ep2")],
        [*(("altup", layout) for layout in LAYOUTS if layout not in IN_LAYOUTS),
         *(("mhc_single_pass", layout) for layout in LAYOUTS if layout not in ("ep2", "pp2-vpp2", "tp2-pp2-ep2")),
         *((stream, "tp2-ep2") for stream in STREAMS if stream not in MANY)],
    ),
)  # fmt: skip
def test_layouts(stream: str, layout: str) -> None:
    assert_parity(small(layout, **delayed(stream), **EVERYWHERE), world_size(layout))


WAYS = {
    "inline": ("ep2", {"overlap": {"mixing": "inline"}, **EVERYWHERE}),
    "blocking": ("ep2", {"overlap": {"exchange": "blocking"}, **EVERYWHERE}),
    "recompute": ("ep2", {"train": {"recompute": "full"}, **EVERYWHERE}),
    "recompute, stages": ("tp2-pp2-ep2", {"train": {"recompute": "full"}, **EVERYWHERE, "model": {"num_layers": 6}}),
    "recompute, an odd number of steps": (
        "ep2",
        {"train": {"recompute": "full"}, **EVERYWHERE, "model": {"num_layers": 5}},
    ),
    "selective": ("tp2-ep2", {"train": {"recompute": "selective"}, **EVERYWHERE}),
    "dense layers between": ("ep2", {}),
    "no experts": ("tp2", {"moe": {"num_experts": 0}}),
    "capacity": ("ep2", {"moe": {"layer_freq": 1, "capacity_factor": 1.0}}),
    "shared expert, balance over steps": (
        "ep2",
        {"moe": {"layer_freq": 1, "shared_expert_size": 16, "load_balancing_type": "global_aux_loss"}},
    ),
    "own experts": ("ep2", {"moe": {"layer_freq": 1, "backend": "torch"}}),
    "all-gather": ("ep2", {"moe": {"layer_freq": 1, "dispatcher": "allgather"}}),
    "distributed optimizer": (
        "ep2",
        {"parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True}, **EVERYWHERE},
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", MANY)
def test_ways(stream: str, way: str) -> None:
    layout, sections = WAYS[way]
    config = small(layout, **delayed(stream), **sections)
    assert_parity(config, world_size(layout))


@pytest.mark.parametrize("stream", ["plain", "plain branches", "hc", "wide_residual_kept"])
def test_recomputation(stream: str) -> None:
    """Weights that are fixed are part of a state, and have no gradient; of these forms some are, or all."""
    layout, sections = WAYS["recompute"]
    assert_parity(small(layout, **delayed(stream), **sections), world_size(layout))


@pytest.mark.parametrize("stream", MANY)
def test_one_expert_gets_most_tokens(stream: str) -> None:
    assert_parity(small("ep4", **delayed(stream), **EVERYWHERE), 4, lopsided)


def first_begun(config: RunConfig) -> dict[str, int]:
    """On a rank: when the first attention and the first exchange of a forward pass begin."""
    from altup_moe.bench.recorded_steps import recorded_steps
    from altup_moe.bench.stepper import Stepper
    from altup_moe.parallel.topology import topology

    with topology(config.parallel) as topo:
        spans = recorded_steps(Stepper(config, topo), 1).spans
    names = {"attention": "compute", "dispatch": "flight"}
    return {
        name: min(s.begin_ns for s in spans if (s.name, s.kind, s.phase) == (name, kind, "forward"))
        for name, kind in names.items()
    }


@pytest.mark.parametrize(("level", "begins"), [("branch", "dispatch"), ("layer", "attention")])
def test_around_branches_an_exchange_is_under_way_before_any_attention(level: str, begins: str) -> None:
    config = small("ep2", altup={"correct": "delayed", "level": level}, **EVERYWHERE)
    for begun in run_ranks(2, first_begun, config):
        assert min(begun, key=begun.__getitem__) == begins


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("stream", MANY)
def test_twenty_losses(stream: str, directory: Path) -> None:
    """Within 1e-4 of one rank's; two steps under way within 1e-6 of one by one, mixed inline."""

    def run(layout: str, name: str, **sections: dict) -> list[float]:
        config = text_run(layout, directory, f"{stream}-{name}", **delayed(stream), **sections)
        assert set(train_on_ranks(layout, config)) == {0}
        assert len(losses(config)) == 20
        return losses(config)

    one, walked = run("one", "one"), run("ep2", "walked")
    inline = run("ep2", "inline", overlap={"mixing": "inline", "exchange": "blocking"})
    assert run("tp2-pp2-ep2", "everything") == pytest.approx(one, rel=1e-4)
    assert walked == pytest.approx(one, rel=1e-4)
    assert walked == pytest.approx(inline, rel=1e-6)
    assert one[-1] < one[0] - 0.1
    other = text_run("one", directory, f"{stream}-next", altup=STREAMS[stream], train={"stop_after": 2})
    assert train_on_ranks("one", other) == [0]
    assert losses(other)[0] != pytest.approx(one[0], rel=1e-6), "another model, another loss"
