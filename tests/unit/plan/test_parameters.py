"""The plan's parameter counts are those of the model that is built."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from hypothesis import given, settings

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.rank_coordinates import all_rank_coordinates, held_tensors
from altup_moe.plan.parameters import count_parameters, held_parameters, stage_parameters
from tests.unit.plan.configs import runs


def built(config: RunConfig) -> dict[str, int]:
    """Parameters of the reference model by name, tied ones once."""
    with torch.device("meta"):
        model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config))
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def sizes(slices: Iterable[tuple[tuple[int, int], ...]]) -> int:
    return sum(math.prod(stop - start for start, stop in tensor_slice) for tensor_slice in slices)


@settings(max_examples=30)
@given(runs())
def test_counts_are_the_built_models(run: tuple[RunConfig, int]) -> None:
    config, world = run
    model = built(config)
    expert_names = {name: n for name, n in model.items() if ".experts." in name}
    got = count_parameters(config)
    assert got.total == sum(model.values())
    assert got.experts == sum(expert_names.values())
    share = config.moe.top_k / max(1, config.moe.num_experts)
    assert got.active == got.total - got.experts + got.experts * share
    # Every rank of a stage holds as many; together, replicas once, they hold the model.
    stages, ranks = stage_parameters(config, world), all_rank_coordinates(config.parallel, world)
    pieces: dict[str, set] = {}
    for coordinates in ranks:
        assert sum(held.size for held in held_parameters(config, coordinates)) == stages[coordinates.pipeline]
        for tensor in held_tensors(config, coordinates):
            for piece in tensor.pieces:
                pieces.setdefault(piece.name, set()).add(piece.global_slice)
    assert {name: sizes(slices) for name, slices in pieces.items() if not is_buffer(name)} == model


def test_mixtral_8x22b() -> None:
    """Mistral's own count: 141 billion parameters, 39 billion active (mistral.ai/news/mixtral-8x22b)."""
    model = ModelConfig(
        num_layers=56,
        hidden_size=6144,
        num_attention_heads=48,
        num_query_groups=8,
        vocab_size=32768,
        share_embeddings_and_output_weights=False,
    )
    moe = MoEConfig(num_experts=8, top_k=2, ffn_hidden_size=16384)
    got = count_parameters(RunConfig(model, AltUpConfig(width=1), moe))
    assert round(got.total / 1e9) == 141
    assert round(got.active / 1e9) == 39
