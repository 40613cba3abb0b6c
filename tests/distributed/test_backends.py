"""The expert contract: every backend computes what the reference computes, and checkpoints move between them.

`tests/distributed/test_gradients.py` and the others run the default backend; what is here runs every other one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import RunConfig
from altup_moe.moe.backends import BACKENDS
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.seeds import initial
from tests.backends import installed, usable
from tests.checkpoints import stored_bytes
from tests.distributed.cases import LAYOUTS, small, with_long, world_size
from tests.distributed.gradients import layout_step, reference_step
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import give_checkpoint, load_and_save, losses, text_run, train_on_ranks
from tests.distributed.test_gradients import VARIANTS, assert_parity

pytestmark = pytest.mark.distributed

ONLY_EXPERTS = {"layer_freq": 1}
CUT = 7
EARLY = 8
"""Steps that are compared; the run that goes on from step CUT is followed to its end."""
OTHERS = [name for name in BACKENDS if name != "megatron"]
"""Megatron's experts are tested by running everything else."""
SLOTS = ("deepspeed", "tutel")
"""Backends that share their exchange (`moe.slots`): they run layouts that differ in who shares what of an expert."""


def over(layouts: Iterable[str], for_slots: Iterable[str]) -> pytest.MarkDecorator:
    """Every backend over layouts, those with slots over some of them.

    What stands in for a package that is not here starts ranks for every case: `make test` has its last layout alone.
    """
    params = []
    for name in OTHERS:
        row, chosen = installed(name), list(for_slots if name in SLOTS else layouts)
        for layout in chosen:
            long = [pytest.mark.long] if row.id and layout != chosen[-1] else []
            params.append(pytest.param(name, layout, marks=[*row.marks, *long], id=f"{layout}-{row.id or name}"))
    return pytest.mark.parametrize(("backend", "layout"), params)


def _long_if_stand_in(name: str) -> Any:
    row = installed(name)
    return pytest.param(name, marks=[*row.marks, pytest.mark.long], id=row.id) if row.id else row


each_backend = pytest.mark.parametrize("backend", [_long_if_stand_in(name) for name in OTHERS])


@over(LAYOUTS, ["one", "ep4", "tp2-ep1", "tp2-pp2-ep2", "cp2", "dp4-ep2-etp2", "ep2"])
def test_layouts(layout: str, backend: str) -> None:
    assert_parity(small(layout, moe={"backend": backend}), world_size(layout))


@over(["ep2", "tp2-pp2-ep2"], ["ep2"])
def test_without_a_wide_stream(layout: str, backend: str) -> None:
    assert_parity(small(layout, moe={"backend": backend}, altup={"width": 1}), world_size(layout))


def _names(config: RunConfig) -> tuple[set[str], set[str]]:
    """On a rank: (names that the table lists, names that the model has) of its chunk."""
    from altup_moe.model.build import build_chunk, named_tensors
    from altup_moe.parallel.parameter_names import local_names
    from altup_moe.parallel.topology import topology

    with topology(config.parallel) as topo:
        chunk = build_chunk(config, topo, None)
        found = {entry.name for entry in named_tensors([chunk], config, topo)}
        held = config.moe.num_experts // config.parallel.expert
        per_stage = config.model.num_layers // config.parallel.pipeline
        layers = range(topo.pipeline_rank * per_stage, (topo.pipeline_rank + 1) * per_stage)
        return set(local_names(config, layers, topo.pipeline_rank == 0, topo.is_last_stage, held)), found


@over(["one", "ep2", "tp2-pp2-ep2"], ["tp2-pp2-ep2"])
def test_names_are_those_of_the_built_model(layout: str, backend: str) -> None:
    for name in (backend, "megatron"):
        moe = {"backend": name, "score_function": "sigmoid", "expert_bias_update_rate": 1e-2, "shared_expert_size": 16}
        for listed, found in run_ranks(world_size(layout), _names, small(layout, moe=moe)):
            assert listed == found


@over(["one", "tp2-ep1", "tp2-pp2-ep2"], ["tp2-ep1", "tp2-pp2-ep2"])
@pytest.mark.parametrize(
    "variant", ["all experts", "capacity", "all-gather", "sigmoid, bias, shared", "partial experts"]
)
def test_variants(variant: str, layout: str, backend: str) -> None:
    moe = VARIANTS[variant]["moe"]
    assert_parity(small(layout, moe={**moe, "backend": backend}), world_size(layout))


WAYS: dict[str, dict[str, Any]] = {
    "recompute": {"train": {"recompute": "full"}},
    "distributed optimizer": {"parallel": {"distributed_optimizer": True, "overlap_grad_reduce": True}},
    "halves": {"overlap": {"microbatch_halves": True}},
    "halves, recompute": {"overlap": {"microbatch_halves": True}, "train": {"recompute": "full"}},
    "blocking": {"overlap": {"exchange": "blocking", "mixing": "inline"}},
}


@over(["ep2", "tp2-pp2-ep2"], ["ep2"])
@pytest.mark.parametrize("way", WAYS)
def test_ways(way: str, layout: str, backend: str) -> None:
    moe = {"backend": backend, **ONLY_EXPERTS}
    assert_parity(small(layout, moe=moe, altup={"width": 4}, **WAYS[way]), world_size(layout))


@over(["one", "ep2", "tp2-ep2"], ["tp2-ep2"])
def test_halves_share_a_capacity(layout: str, backend: str) -> None:
    moe = {"backend": backend, "capacity_factor": 1.0, **ONLY_EXPERTS}
    assert_parity(small(layout, moe=moe, overlap={"microbatch_halves": True}), world_size(layout))


def idle(name: str, shape: tuple[int, ...], tensor_slice: TensorSlice, config: RunConfig) -> Tensor:
    """Weights under which experts 0 and 1 take every token (top 1): their logits are opposite, the others' are 0."""
    value = initial(name, shape, tensor_slice, config)
    if not name.endswith("router.weight"):
        return value
    whole = initial(name, shape, tuple((0, n) for n in shape), config)
    rows = torch.stack([whole[0], -whole[0], *torch.zeros(shape[0] - 2, shape[1])])
    return rows[tuple(slice(a, b) for a, b in tensor_slice)]


@over(["one", "dp2", "ep2", "ep4", "tp2-ep2"], ["dp2", "ep4"])
def test_idle_experts_have_gradients_of_zero(layout: str, backend: str) -> None:
    """Also with overlapped reduction, which waits for every parameter's gradient."""
    config = small(
        layout,
        moe={"backend": backend, "top_k": 1, **ONLY_EXPERTS},
        parallel={"overlap_grad_reduce": True, "distributed_optimizer": True},
    )
    loss, expected = reference_step(small("one", moe={"top_k": 1, **ONLY_EXPERTS}), idle)
    seen = 0
    for got, gradients in run_ranks(world_size(layout), layout_step, config, idle):
        assert got == pytest.approx(loss, rel=1e-5)
        for name, tensor_slice, gradient in gradients:
            if ".experts.2." in name or ".experts.3." in name:
                assert not np.any(gradient), (name, tensor_slice)
                seen += 1
            elif ".experts." in name:
                want = expected[name].sum(0)[tuple(slice(a, b) for a, b in tensor_slice)]
                assert (torch.from_numpy(gradient) - want).norm() <= 1e-5 * want.norm(), (name, tensor_slice)
    assert seen


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def megatron(directory: Path):
    """The run with Megatron's experts on one rank, saved at step CUT, by precision; trained once."""
    known: dict[str, RunConfig] = {}

    def trained(precision: str) -> RunConfig:
        if precision not in known:
            config = text_run("one", directory, f"megatron-{precision}", train={"precision": precision},
                              checkpoint={"save_interval": CUT, "keep": 9})  # fmt: skip
            assert train_on_ranks("one", config) == [0]
            known[precision] = config
        return known[precision]

    return trained


@over(["ep4", "tp2-ep2"], ["ep2", "tp2-ep2"])
def test_losses_are_megatrons(layout: str, backend: str, directory: Path, megatron) -> None:
    train = {"stop_after": EARLY}
    config = text_run(layout, directory, f"{backend}-{layout}", moe={"backend": backend}, train=train)
    assert set(train_on_ranks(layout, config)) == {0}
    expected = losses(megatron("fp32"))[:EARLY]
    assert losses(config) == pytest.approx(expected, rel=1e-4)
    assert len(expected) == EARLY
    assert expected[-1] < expected[0] - 0.1


@each_backend
def test_bf16(backend: str, directory: Path, megatron) -> None:
    """Half precision rounds in other places: close, and trained as well."""
    train = {"precision": "bf16", "stop_after": EARLY}
    config = text_run("ep2", directory, f"{backend}-bf16", moe={"backend": backend}, train=train)
    assert set(train_on_ranks("ep2", config)) == {0}
    assert losses(config) == pytest.approx(losses(megatron("bf16"))[:EARLY], rel=1e-2)


MOVES = with_long(
    [("ep2", "fp32", False), ("tp2-ep2", "bf16", True)], [("one", "fp32", False), ("dp4-ep2-etp2", "fp32", True)]
)


@each_backend
@pytest.mark.parametrize(("layout", "precision", "distributed"), MOVES)
def test_a_checkpoint_moves(
    layout: str, precision: str, distributed: bool, backend: str, megatron, tmp_path: Path
) -> None:
    """Megatron's checkpoint loaded and saved by the backend has the same bytes; so through every other, and back."""
    parts = {"train": {"precision": precision}, "parallel": {"distributed_optimizer": distributed}}
    source = megatron(precision)
    others = [name for name in BACKENDS if name not in (backend, "megatron") and usable(name)]
    for name, to in [(name, name) for name in (backend, *others)] + [("back", "megatron")]:
        target = text_run(layout, tmp_path, name, moe={"backend": to}, **parts)
        expected = stored_bytes(give_checkpoint(source, target, CUT))
        run_ranks(world_size(layout), load_and_save, target, tmp_path / f"{name}-again" / "checkpoints")
        got = stored_bytes(find_checkpoint(tmp_path / f"{name}-again"))
        assert got.keys() == expected.keys()
        assert [key for key in got if got[key] != expected[key]] == []
        source = text_run(layout, tmp_path, f"{name}-again", moe={"backend": to}, **parts)


@over(*[["ep2"]] * 2)
def test_training_goes_on_with_the_other_backend(
    layout: str, backend: str, directory: Path, megatron, tmp_path: Path
) -> None:
    source = megatron("fp32")
    target = text_run(layout, directory, f"on-{backend}-{layout}", moe={"backend": backend})
    give_checkpoint(source, target, CUT)
    assert set(train_on_ranks(layout, target)) == {0}
    got, expected = losses(target), losses(source)[CUT:]
    assert len(got) == 20 - CUT
    assert got == pytest.approx(expected, rel=1e-4)
    assert all(map(math.isfinite, got))
