"""Every way to overlap computes what the reference computes: losses and gradients, skewed routing, 1 to 4 ranks."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from tests.distributed.cases import LAYOUTS, small, with_long, world_size
from tests.distributed.runs import losses, text_run, train_on_ranks
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

EVERYWHERE = {"moe": {"layer_freq": 1}}
MODES = {
    f"{mixing} {exchange}{' halves' if halves else ''}": {
        "overlap": {"mixing": mixing, "exchange": exchange, "microbatch_halves": halves}
    }
    for mixing in ("inline", "deferred")
    for exchange in ("blocking", "async")
    for halves in (False, True)
}


# All modes of a wide stream; one block mixes nothing, so there only the exchange and halves differ. With stages, tensor
# ranks and experts together the two ends of each setting.
MODED = [
    *(("ep2", 4, mode) for mode in MODES),
    *(("ep2", 1, mode) for mode in MODES if mode.startswith("deferred")),
    *(("tp2-pp2-ep2", 4, mode) for mode in ("inline blocking", "inline async halves", "deferred async halves")),
    ("tp2-pp2-ep2", 1, "deferred async halves"),
]
MODED_LONG = [case for case in product(("ep2", "tp2-pp2-ep2"), (1, 4), MODES) if case not in MODED]


@pytest.mark.parametrize(("layout", "width", "mode"), with_long(MODED, MODED_LONG))
def test_modes(layout: str, width: int, mode: str) -> None:
    assert_parity(small(layout, altup={"width": width}, **MODES[mode]), world_size(layout))


# ep2 and tp2-pp2-ep2 are above; halves on the ranks of the long ones are also in test_one_expert_gets_most_tokens and
# test_ways_of_the_newer_variants.
HALVED = ["one", "dp2", "tp2-ep1", "pp2-vpp2", "ep4", "cp2", "dp4-ep2-etp2"]
HALVED_LONG = [(name,) for name in LAYOUTS if name not in (*HALVED, "ep2", "tp2-pp2-ep2")]


@pytest.mark.parametrize("layout", with_long(HALVED, HALVED_LONG))
def test_halves_in_every_layout(layout: str) -> None:
    assert_parity(small(layout, overlap={"microbatch_halves": True}), world_size(layout))


HALVES = {
    "capacity": {"moe": {"layer_freq": 1, "capacity_factor": 1.0}},
    "shared expert": {"moe": {"layer_freq": 1, "shared_expert_size": 16}},
    "wide tables": {"altup": {"recycled": False, "width": 4}, **EVERYWHERE},
    "gemma": {"altup": {"variant": "gemma"}, **EVERYWHERE},
    "recompute": {"train": {"recompute": "full"}, **EVERYWHERE},
    "selective recompute": {"train": {"recompute": "selective"}},
    "four samples": {"train": {"micro_batch_size": 4}, **EVERYWHERE},
    "four samples, capacity": {"train": {"micro_batch_size": 4}, "moe": {"layer_freq": 1, "capacity_factor": 1.0}},
    "four samples, recompute": {"train": {"micro_batch_size": 4, "recompute": "full"}, **EVERYWHERE},
    "top 1": {"moe": {"layer_freq": 1, "top_k": 1}},
    "K=8": {"altup": {"width": 8}},
}


@pytest.mark.parametrize("case", HALVES)
def test_halves(case: str) -> None:
    assert_parity(small("ep2", overlap={"microbatch_halves": True}, **HALVES[case]), 2)


@pytest.mark.parametrize("mixing", ["inline", "deferred"])
@pytest.mark.parametrize("width", [1, 4])
def test_dense_layers_under_tensor_parallelism(width: int, mixing: str) -> None:
    config = small("tp2", altup={"width": width}, overlap={"mixing": mixing}, moe={"num_experts": 0})
    assert_parity(config, 2)


FUSED = {
    # Blocks larger than the pieces of the compiled backward pass.
    "compile": {"model": {"seq_length": 128, "hidden_size": 64, "num_layers": 3}, "moe": {"layer_freq": 1}},
    # Interpreted (tests/conftest.py), so few numbers.
    "triton": {"model": {"num_layers": 2}, "train": {"global_batch_size": 4}},
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_kernels_in_the_model(name: str) -> None:
    assert_parity(small("ep2", altup={"width": 4, "kernel": name}, **FUSED[name]), 2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def _losses(layout: str, directory: Path, name: str, **sections: dict) -> list[float]:
    """Of the first 8 steps."""
    train = {"stop_after": 8, **sections.pop("train", {})}
    config = text_run(layout, directory, f"{layout}-{name}", train=train, **sections)
    assert set(train_on_ranks(layout, config)) == {0}
    assert len(losses(config)) == 8
    return losses(config)


@pytest.mark.parametrize("layout", with_long(["ep2"], [("pp2-vpp2",), ("one",), ("tp2-pp2-ep2",)]))
def test_deferred_mixing_and_halves_keep_every_loss(layout: str, directory: Path) -> None:
    """Gradient accumulation, K = 4: fp32 losses of inline mixing within 1e-6, step by step."""
    wide = {"altup": {"width": 4}}
    expected = _losses(layout, directory, "inline", overlap={"mixing": "inline", "exchange": "blocking"}, **wide)
    ways = {
        "deferred": {},
        "halves": {"overlap": {"microbatch_halves": True}},
        "recomputed": {"train": {"recompute": "full"}},
    }
    for name, sections in ways.items():
        assert _losses(layout, directory, name, **sections, **wide) == pytest.approx(expected, rel=1e-6), name


DEFERRED = ["mhc_single_pass", "hc"]
DEFERRED_LONG = [(variant,) for variant in ("altup", "mhc", "independent_hc", "gated_residual", "wide_residual")]


@pytest.mark.parametrize("variant", with_long(DEFERRED, DEFERRED_LONG))
def test_deferred_branches_keep_every_loss(variant: str, directory: Path) -> None:
    """Streams around branches, K = 4: 8 losses of inline mixing within 1e-6."""
    branches = {"altup": {"width": 4, "level": "branch", "variant": variant}}
    inline = _losses("ep2", directory, f"{variant}-inline", overlap={"mixing": "inline"}, **branches)
    assert _losses("ep2", directory, f"{variant}-deferred", **branches) == pytest.approx(inline, rel=1e-6)
    assert len(set(inline)) == 8


def test_recomputation_draws_the_same_dropout(directory: Path) -> None:
    dropout = {"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}, "altup": {"width": 2}}
    plain = _losses("tp2-pp2-ep2", directory, "dropout", **dropout)
    again = _losses("tp2-pp2-ep2", directory, "dropout-again", train={"recompute": "full"}, **dropout)
    assert again == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("variant", ["altup", "gemma"])
def test_recomputed_layers_share_coefficients_under_overlapped_reduction(variant: str, directory: Path) -> None:
    """A layer's coefficients get gradients from its own recomputation and its neighbour's: Megatron reduces a bucket
    once every parameter has had as many as in the first step."""
    recomputed = {"altup": {"variant": variant}, "train": {"recompute": "full"}}
    plain = _losses("dp2", directory, f"{variant}-reduced-at-the-end", altup={"variant": variant})
    parallel = {"overlap_grad_reduce": True, "distributed_optimizer": True}
    overlapped = _losses("dp2", directory, f"{variant}-overlapped", parallel=parallel, **recomputed)
    assert overlapped == pytest.approx(plain, rel=1e-6)
