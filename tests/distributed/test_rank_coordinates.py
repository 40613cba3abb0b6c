"""Places against the real thing: Megatron's groups and the built model of every rank."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.parallel.rank_coordinates import RankCoordinates, all_rank_coordinates, held_tensors
from tests.distributed.cases import LAYOUTS, small, small_t5, world_size
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "experts every second layer": {},
    "dynamic, partial experts": {
        "altup": {"width": 4, "variant": "dynamic"},
        "moe": {"layer_freq": 1, "partial": True},
    },
    "strided": {"sequence": {"stride": 4}},
    "strided, plain": {"sequence": {"stride": 4, "layers": "0..-2"}, "altup": {"width": 1}},
    "tied, wide, shared expert, bias": {
        "model": {"share_embeddings_and_output_weights": True},
        "altup": {"width": 4, "recycled": False, "variant": "round_robin"},
        "moe": {
            "layer_freq": 1,
            "shared_expert_size": 16,
            "score_function": "sigmoid",
            "expert_bias_update_rate": 0.01,
        },
    },
}


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a rank finds out about itself: its ranks, and its tensors by chunk and name, with shapes and pieces."""

    coordinates: RankCoordinates
    tensors: dict[tuple[int, str], tuple]
    shapes: dict[tuple[int, str], tuple[int, ...]]


def _look_at_all(configs: list[RunConfig]) -> list[Seen]:
    return [_look(config) for config in configs]


def _look(config: RunConfig) -> Seen:
    from megatron.core import parallel_state as ps

    from altup_moe.model.build import build_chunk, named_tensors
    from altup_moe.parallel.topology import topology

    with topology(config.parallel) as topo:
        stages = list(range(topo.virtual_size)) if topo.virtual_size > 1 else [None]
        named = list(named_tensors([build_chunk(config, topo, stage) for stage in stages], config, topo))
        coordinates = RankCoordinates(
            rank=topo.rank,
            tensor=topo.tensor_rank,
            context=ps.get_context_parallel_rank(),
            data=topo.data_rank,
            pipeline=topo.pipeline_rank,
            expert=topo.expert_rank,
            expert_tensor=topo.expert_tensor_rank,
            expert_data=ps.get_expert_data_parallel_rank(),
        )
        return Seen(
            coordinates,
            {(n.chunk, n.name): tuple(n.pieces) for n in named},
            {(n.chunk, n.name): tuple(n.tensor.shape) for n in named},
        )


def _check(configs: list[RunConfig], size: int) -> None:
    """The ranks are started once and build one model after the other."""
    for config in configs:
        check_config(config, size)
    ranks = run_ranks(size, _look_at_all, configs)
    for number, config in enumerate(configs):
        for coordinates, seen in zip(
            all_rank_coordinates(config.parallel, size), (rank[number] for rank in ranks), strict=True
        ):
            assert coordinates == seen.coordinates
            held = {(t.chunk, t.name): t.pieces for t in held_tensors(config, coordinates)}
            assert held == seen.tensors
            for key, shape in seen.shapes.items():
                # The pieces fill the local tensor from corner to corner.
                assert tuple(max(p.local_slice[d][1] for p in held[key]) for d in range(len(shape))) == shape


@pytest.mark.parametrize("layout", ["one", "tp2-ep2"])
def test_coordinates_in_an_encoder_decoder(layout: str) -> None:
    # Gemma-3n's form is refused in an encoder-decoder.
    models = [sections for name, sections in MODELS.items() if not name.startswith("dynamic")]
    _check([small_t5(layout, **sections) for sections in models], world_size(layout))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_coordinates_are_those_of_the_ranks(layout: str) -> None:
    # Long enough for strides in the chunks of four context ranks.
    models = [{**sections, "model": {"seq_length": 32, **sections.get("model", {})}} for sections in MODELS.values()]
    _check([small(layout, **sections) for sections in models], world_size(layout))


UNUSUAL = {
    "uneven interleaved stages": (
        2,
        {
            "model": {"num_layers": 6},
            "parallel": {"pipeline": 2, "virtual_pipeline": 2, "first_stage_layers": 2},
        },
    ),
    "more data ranks than expert ranks": (4, {"parallel": {"data": 4, "expert": 2}}),
    "context and data ranks": (4, {"parallel": {"data": 2, "context": 2, "expert": 2}}),
}


@pytest.mark.parametrize("case", UNUSUAL)
def test_coordinates_in_unusual_layouts(case: str) -> None:
    size, sections = UNUSUAL[case]
    _check([small("one", **sections)], size)
