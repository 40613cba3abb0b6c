"""A training step's types (tests/spmd.py): no gradient stays partial, and each kind of fault is a type error."""

from __future__ import annotations

import functools
import sys

import pytest
from megatron.core.distributed import DistributedDataParallel
from spmd_types import I, SpmdTypeError, V

import altup_moe.model.attention as attention
from altup_moe.config import ParallelConfig
from tests.distributed.cases import LAYOUTS, small, small_t5
from tests.distributed.gradients import _but_for_heads, _mark_experts_dense
from tests.spmd import loss_types

ALL = "tp2-cp2-ep2"
ONE_STEP = {
    # `tp2-ep1`: whole experts on each tensor rank. megatron-core 0.16.1 alone never sums their gradients.
    "tp2-ep1": ParallelConfig(tensor=2),
    "tp2-etp2": ParallelConfig(tensor=2, expert_tensor=2),
    "cp2-ep2": ParallelConfig(context=2, expert=2),
    ALL: ParallelConfig(tensor=2, context=2, expert=2),
}
MODELS: dict[str, dict] = {
    "dynamic coefficients": {"altup": {"variant": "dynamic"}},
    "hyper-connections": {"altup": {"variant": "hc"}},
    "wide tables": {"altup": {"recycled": False}},
    "strided layers": {"sequence": {"stride": 2}},
    "norms of heads": {"model": {"qk_layernorm": True}},
    "tied embeddings": {"model": {"share_embeddings_and_output_weights": True}},
    "shared expert": {"moe": {"shared_expert_size": 16}},
    "all-gather dispatcher": {"moe": {"dispatcher": "allgather"}},
    "torch experts": {"moe": {"backend": "torch"}},
}


@pytest.fixture(autouse=True)
def layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts of this file by name."""
    for name, parallel in ONE_STEP.items():
        monkeypatch.setitem(LAYOUTS, name, parallel)


@pytest.mark.parametrize("layout", ONE_STEP)
def test_no_gradient_stays_partial(layout: str) -> None:
    """Every operation is typed, and so is the loss: the same on tensor ranks, each context rank's own share."""
    sizes = {"tp": LAYOUTS[layout].tensor, "cp": LAYOUTS[layout].context}
    expected = {axis: kind for axis, kind in {"tp": I, "cp": V}.items() if sizes[axis] > 1}
    assert loss_types(small(layout), layout) == expected


@pytest.mark.parametrize("model", MODELS)
def test_of_every_model(model: str) -> None:
    assert loss_types(small(ALL, **MODELS[model]), ALL) == {"tp": I, "cp": V}


def test_of_an_encoder_decoder() -> None:
    assert loss_types(small_t5("tp2-ep2"), "tp2-ep2") == {"tp": I}


def _mark(chunk: DistributedDataParallel, part: str, sequence_parallel: bool) -> None:
    marked = [p for name, p in chunk.module.named_parameters() if part in name]
    assert marked
    for parameter in marked:
        parameter.sequence_parallel = sequence_parallel


@pytest.mark.parametrize("part", ["coefficients.predict", "input_layernorm", "router", "final_layernorm"])
def test_a_parameter_without_its_mark(part: str) -> None:
    """A replicated parameter without ``sequence_parallel``: its gradient is each tensor rank's own."""
    with pytest.raises(SpmdTypeError, match="Invariant type"):
        loss_types(small(ALL), ALL, functools.partial(_mark, part=part, sequence_parallel=False))


def test_a_mark_on_a_parameter_that_is_cut() -> None:
    """Gradients of different rows would be added up."""
    with pytest.raises(SpmdTypeError, match=r"different parts of .*linear_qkv.weight are summed over {'tp'}"):
        loss_types(small(ALL), ALL, functools.partial(_mark, part="linear_qkv", sequence_parallel=True))


@pytest.mark.parametrize("kept", ["all", "norms of heads"])
def test_sequence_parallel_gradients_not_summed(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's attribute of this name is the function; the module is only in sys.modules.
    finalize = sys.modules["megatron.core.distributed.finalize_model_grads"]
    name = "_allreduce_non_tensor_model_parallel_grads"
    instead = (lambda *args: None) if kept == "all" else _but_for_heads(getattr(finalize, name))
    monkeypatch.setattr(finalize, name, instead)
    with pytest.raises(SpmdTypeError, match="Invariant type"):
        loss_types(small(ALL, model={"qk_layernorm": True}), ALL)


def test_gradients_not_summed_over_context_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DistributedDataParallel, "finish_grad_sync", lambda *args, **kwargs: None)
    with pytest.raises(SpmdTypeError, match="Invariant type"):
        loss_types(small("cp2-ep2"), "cp2-ep2")


def test_whole_experts_treated_as_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are on tensor ranks that see different tokens, and summed over nobody."""
    monkeypatch.setattr("altup_moe.model.build.mark_expert_parameters", _mark_experts_dense)
    with pytest.raises(SpmdTypeError, match="Invariant type"):
        loss_types(small("tp2-ep1"), "tp2-ep1")


def test_keys_whose_gradients_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gather over context ranks whose backward keeps a slice where it must sum."""
    keeps = functools.partial(attention.gather_from_sequence_parallel_region, tensor_parallel_output_grad=False)
    monkeypatch.setattr(attention, "gather_from_sequence_parallel_region", keeps)
    with pytest.raises(SpmdTypeError, match="Invariant type"):
        loss_types(small(ALL), ALL)
