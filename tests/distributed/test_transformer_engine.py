"""Transformer Engine's norms and grouped experts in our slots: the reference's gradients, Megatron's checkpoints.

The real package needs a GPU; what stands in for it here has its layers' names, shapes and tags (`tests/standins`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import RunConfig
from tests.checkpoints import stored_bytes
from tests.distributed.cases import small, with_long, world_size
from tests.distributed.ranks import end_living_ranks, run_ranks
from tests.distributed.runs import give_checkpoint, load_and_save, losses, text_run, train_on_ranks
from tests.distributed.test_gradients import assert_parity

pytestmark = [pytest.mark.distributed, pytest.mark.stand_in("transformer_engine")]

ON = {"transformer_engine": "on"}


@pytest.fixture(scope="module", autouse=True)
def _ranks_of_this_file() -> Iterator[None]:
    """They have imported what stands in for the package; no other file has use for them."""
    yield
    end_living_ranks("transformer_engine")


def _classes(config: RunConfig) -> set[str]:
    """On a rank: class of every module that has parameters of its own, with its package."""
    from altup_moe.model.build import build_chunk
    from altup_moe.parallel.topology import topology

    with topology(config.parallel) as topo:
        modules = build_chunk(config, topo, None).modules()
        return {type(m).__module__.split(".")[0] + "." + type(m).__name__ for m in modules if m._parameters}


def test_its_layers_are_what_is_built() -> None:
    config = small("one", model={"qk_layernorm": True}, train=ON)
    (built,) = run_ranks(1, _classes, config)
    assert "transformer_engine.RMSNorm" in built
    assert "megatron.TEColumnParallelGroupedLinear" in built
    assert not any("altup_moe.SequenceParallelRMSNorm" in name for name in built)


def test_off_and_on_a_cpu_ours_are_built() -> None:
    for asked in ("off", "auto"):
        (built,) = run_ranks(1, _classes, small("one", train={"transformer_engine": asked}))
        assert "altup_moe.SequenceParallelRMSNorm" in built
        assert not any("Grouped" in name or "transformer_engine" in name for name in built)


@pytest.mark.parametrize(
    ("layout", "width"), with_long([("dp4-ep2-etp2", 4)], [("one", 1), ("one", 4), ("tp2-ep1", 4)])
)
def test_layouts(layout: str, width: int) -> None:
    config = small(layout, altup={"width": width, "recycled": width == 1}, model={"qk_layernorm": True}, train=ON)
    assert_parity(config, world_size(layout))


def test_other_ways() -> None:
    moe = {"layer_freq": 1, "shared_expert_size": 16}
    config = small("tp2-ep2", moe=moe, overlap={"microbatch_halves": True}, train={**ON, "recompute": "full"})
    assert_parity(config, world_size("tp2-ep2"))


def test_other_backends_keep_their_experts() -> None:
    config = small("ep2", moe={"backend": "torch"}, train=ON)
    built = run_ranks(2, _classes, config)[0]
    assert {"altup_moe.StackedExperts", "transformer_engine.RMSNorm"} <= built
    assert_parity(config, 2)


@pytest.mark.long
def test_a_checkpoint_moves(tmp_path: Path) -> None:
    """Plain layers' checkpoint, loaded and saved by the fused ones, has the same bytes; and it trains on alike."""
    layout = "ep2"
    plain = text_run(layout, tmp_path, "plain", checkpoint={"save_interval": 7, "keep": 9})
    assert set(train_on_ranks(layout, plain)) == {0}
    fused = text_run(layout, tmp_path, "fused", train=ON)
    expected = stored_bytes(give_checkpoint(plain, fused, 7))
    run_ranks(world_size(layout), load_and_save, fused, tmp_path / "again" / "checkpoints")
    assert stored_bytes(find_checkpoint(tmp_path / "again")) == expected
    assert set(train_on_ranks(layout, fused)) == {0}
    assert losses(fused) == pytest.approx(losses(plain)[7:], rel=1e-4)
