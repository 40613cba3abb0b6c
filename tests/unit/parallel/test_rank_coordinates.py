"""Places: numbering of ranks, layers of chunks, and that all ranks together hold the reference model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig
from altup_moe.config.checks import check_config, smallest_world
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.parallel.parameter_names import global_shapes, is_buffer
from altup_moe.parallel.rank_coordinates import all_rank_coordinates, chunk_layers, held_tensors

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=16,
    ffn_hidden_size=24,
    num_attention_heads=8,
    num_query_groups=4,
    seq_length=16,
    vocab_size=64,
    share_embeddings_and_output_weights=False,
)
STREAMS: dict[str, dict[str, Any]] = {
    "K 1": {"width": 1},
    "K 2": {"width": 2},
    "K 4 wide": {"width": 4, "recycled": False},
    "gemma K 4": {"width": 4, "variant": "gemma"},
    "gemma K 2 wide": {"width": 2, "variant": "gemma", "recycled": False},
    "round_robin K 2": {"width": 2, "variant": "round_robin"},
    "round_robin K 4 wide": {"width": 4, "variant": "round_robin", "recycled": False},
    "hc K 4": {"width": 4, "variant": "hc"},
    "dynamic K 4": {"width": 4, "variant": "dynamic"},
    "dynamic K 1": {"width": 1, "variant": "dynamic"},
    "sum K 2": {"width": 2, "variant": "sum", "recycled": False},
    "sum K 4": {"width": 4, "variant": "sum", "recycled": False},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "every layer": {"num_experts": 4},
    "every second": {"num_experts": 4, "layer_freq": 2},
    "every third, shared": {"num_experts": 4, "layer_freq": 3, "shared_expert_size": 32},
    "partial": {"num_experts": 4, "layer_freq": 2, "partial": True},
    "load": {"num_experts": 4, "load_balancing_type": "global_aux_loss"},
    "bias": {"num_experts": 4, "score_function": "sigmoid", "expert_bias_update_rate": 0.01},
}


# `sum` embeds wider than it puts out: its tables cannot be tied.
TABLES = [(name, tied) for name in STREAMS for tied in (True, False) if not (tied and name.startswith("sum"))]


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize(("stream", "tied"), TABLES)
def test_global_shapes_are_the_reference_models(stream: str, experts: str, tied: bool) -> None:
    model = replace(MODEL, share_embeddings_and_output_weights=tied)
    config = RunConfig(model, AltUpConfig(**STREAMS[stream]), MoEConfig(**EXPERTS[experts], ffn_hidden_size=20))
    check_config(config, 1)
    with torch.device("meta"):
        reference = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config))
    # A tied output layer is one more name of the embedding.
    skipped = {"lm_head.weight"} if tied else set()
    assert global_shapes(config) == {n: tuple(t.shape) for n, t in reference.state_dict().items() if n not in skipped}
    buffers = {name for name, _ in reference.named_buffers()} & set(reference.state_dict())
    assert {name for name in global_shapes(config) if is_buffer(name)} == buffers


def test_ranks_are_numbered_tensor_fastest_and_pipeline_slowest() -> None:
    parallel = ParallelConfig(tensor=2, context=2, data=3, pipeline=2)
    ranks = all_rank_coordinates(parallel, smallest_world(parallel))
    assert len(ranks) == 24
    assert [(p.tensor, p.context, p.data, p.pipeline) for p in ranks] == [
        (t, c, d, s) for s in range(2) for d in range(3) for c in range(2) for t in range(2)
    ]


def test_experts_have_an_order_of_their_own() -> None:
    parallel = ParallelConfig(tensor=4, expert=2, expert_tensor=2, pipeline=2)
    ranks = all_rank_coordinates(parallel, 16)
    assert [(p.expert_tensor, p.expert, p.expert_data, p.pipeline) for p in ranks] == [
        (t, e, d, s) for s in range(2) for d in range(2) for e in range(2) for t in range(2)
    ]


@pytest.mark.parametrize(
    ("parallel", "expected"),
    [
        ({}, 1),
        ({"tensor": 2, "pipeline": 3, "context": 2}, 12),
        ({"expert": 4}, 4),
        ({"tensor": 2, "expert": 4}, 4),
        ({"tensor": 3, "expert": 2}, 6),
        ({"data": 2, "expert": 4, "expert_tensor": 2, "pipeline": 2}, 16),
        ({"data": 8, "expert": 4}, 8),
    ],
)
def test_the_smallest_world(parallel: dict[str, int], expected: int) -> None:
    assert smallest_world(ParallelConfig(**parallel)) == expected


@pytest.mark.parametrize(
    ("layers", "parallel", "expected"),
    [
        (4, {}, [[(0, 4)]]),
        (4, {"pipeline": 2}, [[(0, 2)], [(2, 4)]]),
        (5, {"pipeline": 3, "first_stage_layers": 1}, [[(0, 1)], [(1, 3)], [(3, 5)]]),
        (5, {"pipeline": 3, "last_stage_layers": 1}, [[(0, 2)], [(2, 4)], [(4, 5)]]),
        (5, {"pipeline": 2, "first_stage_layers": 2, "last_stage_layers": 3}, [[(0, 2)], [(2, 5)]]),
        (8, {"pipeline": 2, "virtual_pipeline": 2}, [[(0, 2), (4, 6)], [(2, 4), (6, 8)]]),
        (
            12,
            {"pipeline": 3, "virtual_pipeline": 2, "first_stage_layers": 2, "last_stage_layers": 4},
            [[(0, 1), (6, 7)], [(1, 4), (7, 10)], [(4, 6), (10, 12)]],
        ),
    ],
)
def test_layers_of_chunks(layers: int, parallel: dict[str, int], expected: list[list[tuple[int, int]]]) -> None:
    config = RunConfig(model=replace(MODEL, num_layers=layers), parallel=ParallelConfig(**parallel))
    got = [chunk_layers(config, stage) for stage in range(config.parallel.pipeline)]
    assert [[(c.layers.start, c.layers.stop) for c in stage] for stage in got] == expected
    assert [(s, n) for s, stage in enumerate(got) for n, c in enumerate(stage) if c.first] == [(0, 0)]
    assert [(s, n) for s, stage in enumerate(got) for n, c in enumerate(stage) if c.last] == [
        (config.parallel.pipeline - 1, config.parallel.virtual_pipeline - 1)
    ]


def test_a_tied_output_layer_is_a_copy_of_the_embedding_on_the_last_stage() -> None:
    model = replace(MODEL, share_embeddings_and_output_weights=True)
    config = RunConfig(model=model, parallel=ParallelConfig(pipeline=2, tensor=2))
    holders = {
        (coordinates.rank, tensor.name, tensor.pieces[0].global_slice)
        for coordinates in all_rank_coordinates(config.parallel, 4)
        for tensor in held_tensors(config, coordinates)
        for piece in tensor.pieces
        if piece.name == "model.embed_tokens.weight"
    }
    upper, lower = ((0, 32), (0, 16)), ((32, 64), (0, 16))
    embedding, output = "embedding.word_embeddings.weight", "output_layer.weight"
    assert holders == {(0, embedding, upper), (1, embedding, lower), (2, output, upper), (3, output, lower)}
