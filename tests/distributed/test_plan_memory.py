"""The plan's memory against a step's ranks: weights, gradients and optimizer exactly, activations within 10 %.

Activations are the storages that autograd keeps in a chunk's first forward pass, parameters aside, each once. With
recomputation, which keeps tensors by itself, they are the peak of what forward and backward passes hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.parallel.rank_coordinates import chunk_layers
from altup_moe.plan.groups import World
from altup_moe.plan.memory import chunk_activations, kept_by_loss, rank_memory, states
from tests.distributed.cases import small, world_size
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


@dataclass
class Held:
    """Bytes on a rank after a step; `kept` of each chunk's first forward."""

    weights: int
    gradients: int
    optimizer: int
    kept: list[int]


def hold(config: RunConfig) -> Held:
    """On a rank: one step, and what there is then."""
    from torch.autograd.graph import saved_tensors_hooks

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import train_step
    from tests.distributed.cases import own_batches

    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        own = {p.untyped_storage().data_ptr() for c in engine.chunks for p in c.parameters()}
        kept: list[dict[int, Any]] = [{} for _ in engine.chunks]
        for chunk, found in zip(engine.chunks, kept, strict=True):
            _count_first(chunk, found, own, saved_tensors_hooks)
        train_step(engine, own_batches(config, topo), config, topo)
        buffers = [b for c in engine.chunks for b in (*c.buffers, *c.expert_parallel_buffers)]
        return Held(
            weights=sum(p.numel() * p.element_size() for c in engine.chunks for p in c.parameters()),
            gradients=sum(b.grad_data.numel() * b.grad_data.element_size() for b in buffers),
            optimizer=sum(_state_bytes(part, config) for part in _parts(engine.optimizer)),
            kept=[sum(storage.nbytes() for storage in found.values()) for found in kept],
        )


def _count_first(chunk: Any, found: dict[int, Any], own: set[int], hooks: Any) -> None:
    forward = chunk.forward

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Not the tensor: nodes keep this hook, and a tensor leads to its nodes. Such a circle is never freed, nor
            # are the process groups in it, where the backward pass does not come by.
            found[storage.data_ptr()] = storage
        return tensor

    def counted(*args: Any, **kwargs: Any) -> Any:
        chunk.forward = forward
        with hooks(keep, lambda tensor: tensor):
            return forward(*args, **kwargs)

    chunk.forward = counted


def _parts(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def _state_bytes(part: Any, config: RunConfig) -> int:
    """Moments, and fp32 copies where the weights are not fp32."""
    inner, total = part.optimizer, 0
    for state in inner.state.values():
        total += sum(t.numel() * t.element_size() for k, t in state.items() if k in ("exp_avg", "exp_avg_sq"))
    if config.train.precision == "bf16":
        copies = (
            "shard_fp32_from_float16_groups" if config.parallel.distributed_optimizer else "fp32_from_float16_groups"
        )
        total += sum(t.numel() * 4 for group in getattr(part, copies) for t in group)
    return total


WIDE = {"model": {"seq_length": 64, "hidden_size": 64, "ffn_hidden_size": 192, "vocab_size": 128}}
BRANCH = {"level": "branch"}
CASES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "one": ("one", {}),
    "one, K 4": ("one", {"altup": {"width": 4}}),
    "one, dense, K 1, bf16": (
        "one",
        {"moe": {"num_experts": 0}, "altup": {"width": 1}, "train": {"precision": "bf16"}},
    ),
    "branches": ("tp2", {"altup": {"level": "branch"}}),
    "branches, wide residual, K 4": ("one", {"altup": {"level": "branch", "width": 4, "variant": "wide_residual"}}),
    "mhc": ("tp2", {"altup": {**BRANCH, "variant": "mhc"}}),
    "mhc, K 4, bf16": ("ep2", {"altup": {**BRANCH, "width": 4, "variant": "mhc"}, "train": {"precision": "bf16"}}),
    "mhc, wide tables, inline": (
        "pp2-uneven",
        {"altup": {**BRANCH, "variant": "mhc", "recycled": False}, "overlap": {"mixing": "inline"}},
    ),
    "mhc_single_pass": ("ep2", {"altup": {**BRANCH, "variant": "mhc_single_pass"}, "overlap": {"mixing": "inline"}}),
    "mhc_single_pass, K 4": ("pp2-vpp2", {"altup": {**BRANCH, "width": 4, "variant": "mhc_single_pass"}}),
    "independent_hc": ("pp2-uneven", {"altup": {**BRANCH, "variant": "independent_hc"}}),
    "independent_hc, K 4": ("cp2", {"altup": {**BRANCH, "width": 4, "variant": "independent_hc"}}),
    "gated_residual": ("tp2-ep2", {"altup": {**BRANCH, "variant": "gated_residual"}}),
    "gated_residual, K 4, bf16": (
        "dp2",
        {"altup": {**BRANCH, "width": 4, "variant": "gated_residual"}, "train": {"precision": "bf16"}},
    ),
    "dynamic, K 4": ("pp2", {"altup": {"width": 4, "variant": "dynamic"}}),
    "dynamic, branches": ("tp2", {"altup": {**BRANCH, "variant": "dynamic"}, "train": {"precision": "bf16"}}),
    "delayed": ("ep2", {"altup": {"correct": "delayed"}}),
    "plain, delayed": ("ep2", {"altup": {"width": 1, "correct": "delayed"}}),
    "plain, delayed branches": ("ep2", {"altup": {**BRANCH, "width": 1, "correct": "delayed"}}),
    "mhc_single_pass, delayed": ("ep2", {"altup": {**BRANCH, "variant": "mhc_single_pass", "correct": "delayed"}}),
    "mhc_single_pass, delayed, K 4": (
        "pp2-vpp2",
        {"altup": {**BRANCH, "width": 4, "variant": "mhc_single_pass", "correct": "delayed"}},
    ),
    "delayed branches, K 4, hc": ("ep2", {"altup": {**BRANCH, "correct": "delayed", "variant": "hc", "width": 4}}),
    "data, sharded": ("dp2", {"parallel": {"distributed_optimizer": True}}),
    "data, bf16": ("dp2", {"train": {"precision": "bf16"}}),
    "data, sharded, bf16": ("dp2", {"parallel": {"distributed_optimizer": True}, "train": {"precision": "bf16"}}),
    "tensor": ("tp2", {}),
    "loss in chunks": ("one", {"train": {"loss_chunk": 16}}),
    "tensor, loss in chunks": ("tp2", {"train": {"loss_chunk": 16}}),
    "uneven stages": ("pp2-uneven", {}),
    "interleaved, tied": ("pp2-vpp2", {"model": {"share_embeddings_and_output_weights": True}}),
    "experts": ("ep2", {"moe": {"layer_freq": 1}}),
    "tensor and experts": ("tp2-ep2", {"altup": {"width": 1}}),
    "context": ("cp2", {}),
    "tensor, stages, experts": ("tp2-pp2-ep2", {"altup": {"recycled": False}}),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_a_step_holds(case: str) -> None:
    layout, sections = CASES[case]
    config = small(layout, **{**sections, "model": {**WIDE["model"], **sections.get("model", {})}})
    size = world_size(layout)
    check_config(config, size)
    world = World(config.parallel, size)
    for coordinates, held in zip(world.all_coordinates, run_ranks(size, hold, config), strict=True):
        weights, gradients, optimizer = states(config, world, coordinates)
        assert (held.weights, held.gradients) == (weights, gradients)
        # A shard may end inside a parameter: padding is nobody's.
        assert held.optimizer == pytest.approx(optimizer, rel=0.02 if config.parallel.distributed_optimizer else 1e-12)
        for chunk, kept in zip(chunk_layers(config, coordinates.pipeline), held.kept, strict=True):
            planned = sum(chunk_activations(config, chunk)) + (kept_by_loss(config) if chunk.last else 0)
            assert planned == pytest.approx(kept, rel=0.1), (coordinates, chunk)


def peak(config: RunConfig) -> int:
    """On a rank: the most bytes that forward and backward passes of a step hold at once, beside weights and sums."""

    from altup_moe.parallel.topology import topology
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import run_schedule
    from tests.distributed.cases import own_batches
    from tests.distributed.live_bytes import LiveBytes

    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        batches = own_batches(config, topo)
        with LiveBytes() as live:
            run_schedule(engine.chunks, batches, config, topo)
        return live.peak


PEAKS = [
    (layout, variant, width, recompute, mixing)
    for layout, variant, width in (
        ("one", "mhc", 2),
        ("dp2", "mhc", 4),
        ("pp2", "mhc_single_pass", 2),
        ("one", "mhc_single_pass", 4),
        ("one", "independent_hc", 2),
        ("dp2", "independent_hc", 4),
        ("one", "gated_residual", 2),
        ("pp2", "gated_residual", 4),
        ("one", "dynamic", 2),
        ("dp2", "dynamic", 4),
    )
    for recompute, mixing in (("none", "deferred"), ("full", "deferred"), ("full", "inline"))
]


@pytest.mark.parametrize(("layout", "variant", "width", "recompute", "mixing"), PEAKS)
def test_peak_of_streams_with_weights_of_every_token(
    layout: str, variant: str, width: int, recompute: str, mixing: str
) -> None:
    _check_peak(layout, {"variant": variant, "width": width}, recompute, mixing)


DELAYED = {"correct": "delayed"}
STREAMS = [
    {"width": 4, "variant": "hc"},  # its layers' steps share a pass
    {"width": 4, "variant": "hc", **DELAYED},  # reads a state before the last write
    {"width": 1, **DELAYED},  # a plain stream with steps
    {"width": 4, "variant": "mhc_single_pass", **DELAYED},  # hands on what the next step reads
]


@pytest.mark.parametrize(("recompute", "mixing"), [("none", "deferred"), ("full", "deferred"), ("full", "inline")])
@pytest.mark.parametrize("altup", STREAMS, ids=lambda altup: ", ".join(map(str, altup.values())))
def test_peak_of_streams_with_static_weights_or_delayed_outputs(
    altup: dict[str, Any], recompute: str, mixing: str
) -> None:
    _check_peak("one", altup, recompute, mixing)


FULL = {"recompute": "full"}
DENSE: dict[str, dict[str, Any]] = {"moe": {"num_experts": 0}, "parallel": {"expert_tensor": 1}}
LAYOUT_PEAKS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    # The gradients of the layer that is recomputed, of Megatron's walk and of ours.
    "plain layers": ("one", {"altup": {"width": 1}, "train": FULL, **DENSE}),
    "layers": ("one", {"altup": {"width": 4}, "train": FULL, **DENSE}),
    # What travels between stages, and what is kept of every micro-batch in flight but formed again of one.
    "stages": ("pp2", {"altup": {"width": 4}, **DENSE}),
    "interleaved stages": ("pp2-vpp2", {"altup": {"width": 4}, **DENSE}),
    "interleaved stages, recomputed": ("pp2-vpp2", {"altup": {**BRANCH, "width": 4}, "train": FULL, **DENSE}),
    # A linear layer's gathered input; rows on their way to other ranks, of which nothing outlives the backward pass.
    "tensor ranks": ("tp2", {"altup": {"width": 4}, **DENSE}),
    "experts of two ranks": ("ep2", {"altup": {"width": 4}}),
    # Experts: their layers leave nothing behind, and two steps that are under way are neighbours.
    "experts, recomputed": ("one", {"altup": {"width": 4}, "train": FULL}),
    "experts, delayed, recomputed": ("one", {"altup": {**BRANCH, "width": 4, **DELAYED}, "train": FULL}),
    "stages with experts, recomputed": ("pp2", {"altup": {"width": 4}, "train": FULL}),
}


@pytest.mark.parametrize("case", LAYOUT_PEAKS)
def test_peak_of_layouts(case: str) -> None:
    layout, sections = LAYOUT_PEAKS[case]
    _check(small(layout, **{"model": {**WIDE["model"], "vocab_size": 64}, **sections}), world_size(layout))


def _check_peak(layout: str, altup: dict[str, Any], recompute: str, mixing: str) -> None:
    config = small(
        layout,
        model={**WIDE["model"], "vocab_size": 64},
        altup={"level": "branch", **altup},
        overlap={"mixing": mixing},
        train={"recompute": recompute},
        **DENSE,
    )
    _check(config, world_size(layout))


def _check(config: RunConfig, size: int) -> None:
    check_config(config, size)
    world = World(config.parallel, size)
    for coordinates, held in zip(world.all_coordinates, run_ranks(size, peak, config), strict=True):
        memory = rank_memory(config, world, coordinates)
        lasting = memory.weights + memory.gradients + memory.optimizer
        assert memory.total - lasting == pytest.approx(held, rel=0.1), coordinates
