"""The layer around DeepSpeed's: what it takes from the library, and that nothing in it is random."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from altup_moe.config import ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.model.build import build_chunk, set_weights
from altup_moe.moe.capacity import expert_capacity
from altup_moe.parallel.topology import Topology
from tests.backends import usable

if not usable("deepspeed"):
    pytest.skip("deepspeed is not installed", allow_module_level=True)

from altup_moe.moe import deepspeed_backend as backend

TOKENS, BATCH, EXPERTS, TOP_K, HIDDEN = 12, 2, 4, 2, 32


def layer_of(topo: Topology, name: str = "deepspeed", **moe: Any) -> Any:
    """One MoE layer with seeded weights."""
    config = RunConfig(
        ModelConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=4, num_query_groups=4, vocab_size=64),
        moe=MoEConfig(num_experts=EXPERTS, top_k=TOP_K, ffn_hidden_size=24, backend=name, **moe),
        train=TrainConfig(micro_batch_size=BATCH, global_batch_size=BATCH),
    )
    config = replace(config, altup=replace(config.altup, width=1))
    chunk = build_chunk(config, topo, None)
    set_weights([chunk], config, topo)
    return chunk.decoder.layers[0].mlp


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(TOKENS, BATCH, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("capacity", [None, 1.0])
def test_it_computes_what_megatrons_does_and_draws_nothing(
    alone: Topology, training: bool, capacity: float | None
) -> None:
    ours, megatron = (layer_of(alone, name, capacity_factor=capacity) for name in ("deepspeed", "megatron"))
    ours.train(training), megatron.train(training)
    before = torch.get_rng_state()
    first, again = ours(tokens())[0], ours(tokens())[0]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, megatron(tokens())[0])


def test_building_draws_nothing(alone: Topology) -> None:
    before = torch.get_rng_state()
    backend.GatedExpert(8, 4, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("capacity", "training"), [(None, True), (0.5, True), (0.5, False), (99.0, True)])
def test_slots(alone: Topology, monkeypatch: pytest.MonkeyPatch, capacity: float | None, training: bool) -> None:
    """The buffers are as large as the capacity allows, or as the fullest expert needs; never larger than the tokens."""
    layer = layer_of(alone, capacity_factor=capacity).train(training)
    seen: list[tuple[int, ...]] = []
    layer.experts.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    layer(tokens())
    with torch.no_grad():
        counts = layer.route(tokens())[1].sum(0)
    total = TOKENS * BATCH
    if capacity is None or not training:
        slots = int(counts.max())
    else:
        slots = min(total, expert_capacity(total, TOP_K, EXPERTS, capacity))
    assert seen == [(1, EXPERTS, slots, HIDDEN)]


def test_experts_are_registered_once(alone: Topology) -> None:
    names = [name for name, _ in layer_of(alone).named_parameters(remove_duplicate=False)]
    expected = [f"experts.local_experts.{e}.linear_fc{n}.weight" for e in range(EXPERTS) for n in (1, 2)]
    assert sorted(names) == sorted(["router.weight", *expected])


def test_deepspeed_itself_is_left_as_it_is(alone: Topology) -> None:
    import deepspeed.moe.sharded_moe as theirs

    before = dict(vars(theirs))
    forward = theirs.MOELayer.forward
    layer_of(alone)(tokens())
    assert vars(theirs) == before
    assert theirs.MOELayer.forward is forward


ANSWER = 1


def _answer() -> int:
    return ANSWER


def test_a_function_with_other_names() -> None:
    assert backend.with_names(_answer, ANSWER=2)() == 2
    assert _answer() == 1
    with pytest.raises(ImportError, match=r"_answer does not look up QUESTION"):
        backend.with_names(_answer, ANSWER=2, QUESTION=3)
