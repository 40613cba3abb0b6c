"""A token's operations: those that torch counts on the reference model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, SequenceConfig
from altup_moe.model.flops import attention_flops, flops_per_token, model_products
from altup_moe.model.reference.build import reference_model
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM

SHAPE = ModelConfig(
    num_layers=4,
    hidden_size=64,
    ffn_hidden_size=176,
    num_attention_heads=4,
    num_query_groups=2,
    seq_length=32,
    vocab_size=256,
)
EXPERTS: dict[str, Any] = {"num_experts": 4, "layer_freq": 2, "ffn_hidden_size": 88, "shared_expert_size": 40}
WIDE_HEADS = {"kv_channels": 48, "qk_layernorm": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"width": 1}, {}),
    "wide heads": ({"width": 1}, {}),
    "altup": ({"width": 4}, {}),
    "wide tables": ({"width": 4, "recycled": False}, {}),
    "gemma": ({"width": 2, "variant": "gemma"}, {}),
    "dynamic": ({"width": 4, "variant": "dynamic"}, {}),
    "sum": ({"width": 2, "variant": "sum", "recycled": False}, {}),
    "partial experts": ({"width": 2}, {"num_experts": 16, "top_k": 1, "ffn_hidden_size": 16, "partial": True}),
    "experts": ({"width": 1}, EXPERTS),
    "altup and only experts": ({"width": 2}, {**EXPERTS, "layer_freq": 1, "top_k": 3, "shared_expert_size": 0}),
}


def counted_forward(config: RunConfig) -> float:
    """Operations of matrix products per token of the reference's forward pass, all scores of the attention counted."""
    model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config))
    tokens = torch.randint(0, config.model.vocab_size, (2, config.model.seq_length))
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.losses(tokens, tokens)
    return counter.get_total_flops() / tokens.numel()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case: str, tied: bool) -> None:
    """Forward and backward are three forwards. Two things are counted differently, and both are known exactly:

    torch counts all scores, we the causal half; torch sees no product in g (x) y, we count its K features.
    """
    altup, moe = CASES[case]
    model = replace(SHAPE, share_embeddings_and_output_weights=tied and case != "sum")
    model = replace(model, **WIDE_HEADS) if case == "wide heads" else model
    config = RunConfig(model, AltUpConfig(**altup), MoEConfig(**moe))
    width = config.altup.width if config.altup.variant != "sum" else 1
    features, heads = model.num_layers * model.hidden_size, model.num_layers * 4 * model.head_dim
    acausal_half, write = 2 * heads * model.seq_length, 2 * features * width if width > 1 else 0
    assert flops_per_token(config) == pytest.approx(3 * (counted_forward(config) - acausal_half + write), rel=1e-9)


OF_EVERY_TOKEN: dict[str, tuple[str, int, int, int]] = {
    "dynamic": ("layer", 0, 1, 0),
    "dynamic, branches": ("branch", 0, 1, 0),
    "mhc": ("branch", 0, 0, -1),
    "mhc_single_pass": ("branch", 0, 1, 0),
    "independent_hc": ("branch", 1, 0, -1),
    "gated_residual": ("branch", 1, 1, 0),
}
"""Name -> (level, what we count and torch does not: of a step K^2 a feature, and K; of the stream's end K).

K (K + 1) a feature are counted for each step, its read not. torch sees the matrix that mixes, where there is one, and
a read that is a product, which stands in g (x) y's place.
"""


@pytest.mark.parametrize("experts", [{}, EXPERTS])
@pytest.mark.parametrize(("width", "recycled"), [(2, True), (4, True), (4, False)])
@pytest.mark.parametrize("case", OF_EVERY_TOKEN)
def test_operations_of_weights_of_every_token(case: str, width: int, recycled: bool, experts: dict[str, Any]) -> None:
    variant, (level, mixes, writes, end) = case.partition(",")[0], OF_EVERY_TOKEN[case]
    recycled |= variant == "dynamic"
    altup = AltUpConfig(width=width, variant=variant, level=level, recycled=recycled)
    config = RunConfig(SHAPE, altup, MoEConfig(**experts))
    features, heads = SHAPE.num_layers * SHAPE.hidden_size, SHAPE.num_layers * 4 * SHAPE.head_dim
    known = features * (2 if level == "branch" else 1) * (mixes * width**2 + writes * width)
    known += recycled * end * width * SHAPE.hidden_size
    expected = 3 * (counted_forward(config) - 2 * heads * SHAPE.seq_length + 2 * known)
    assert flops_per_token(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("cross", ["narrow", "wide"])
@pytest.mark.parametrize("width", [1, 2])
def test_operations_of_an_encoder_decoder(width: int, cross: str) -> None:
    """As above; only the decoder's self-attention is causal, and a token is one of both stacks'."""
    model = replace(
        SHAPE, arch="t5", num_query_groups=4, num_layers=2, num_decoder_layers=4, decoder_seq_length=12,
        share_embeddings_and_output_weights=False,
    )  # fmt: skip
    config = RunConfig(model, AltUpConfig(width=width, cross_attention=cross), MoEConfig(**EXPERTS))
    tokens, answers = torch.zeros(2, 32, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference_model(config).losses(tokens, torch.ones(2, 32), answers, answers)
    acausal_half = 4 * 2 * 64 * 12 * 12
    write = 2 * 64 * width * (2 * 32 + 4 * 12) if width > 1 else 0
    expected = 3 * (counter.get_total_flops() / 2 - acausal_half + write) / (32 + 12)
    assert flops_per_token(config) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decoder", [None, "1..2"])
def test_operations_of_a_strided_encoder_decoder(decoder: str | None) -> None:
    """Encoder layer 1 of three on 8 of 32 tokens; of the decoder's layers none, or two of four on 3 of 12."""
    model = replace(SHAPE, arch="t5", num_query_groups=4, num_layers=3, num_decoder_layers=4, decoder_seq_length=12)
    sequence = SequenceConfig(4, "1..-2", "stride_and_skip", decoder)
    config = RunConfig(model, AltUpConfig(width=1), MoEConfig(**EXPERTS), sequence=sequence)
    tokens, answers = torch.zeros(2, 32, dtype=torch.long), torch.zeros(2, 12, dtype=torch.long)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        reference_model(config).losses(tokens, torch.ones(2, 32), answers, answers)
    acausal_half = 2 * 64 * (4 * 12 * 12 if decoder is None else 2 * 12 * 12 + 2 * 3 * 3)
    expected = 3 * (counter.get_total_flops() / 2 - acausal_half) / (32 + 12)
    assert flops_per_token(config) == pytest.approx(expected, rel=1e-9)


def test_operations_by_hand() -> None:
    """One layer, width 4: q, o 2*16; k, v 2*8; scores 3*4; mlp 3*20; two experts of 5 features, router of 8."""
    shape = ModelConfig(1, 4, 5, 2, 1, 3, 7)
    assert flops_per_token(RunConfig(shape, AltUpConfig(width=1))) == 6 * (32 + 16 + 12 + 60 + 28)
    moe = MoEConfig(num_experts=8, top_k=2, ffn_hidden_size=5)
    assert flops_per_token(RunConfig(shape, AltUpConfig(width=2), moe)) == 6 * (60 + 2 * 60 + 32 + 2 * 3 * 4 + 28)


@pytest.mark.parametrize("experts", [{}, EXPERTS])
@pytest.mark.parametrize(("stride", "layers", "strided"), [(2, "0..-1", range(4)), (4, "1..-2", range(1, 3))])
def test_operations_of_strided_layers_are_those_that_torch_counts(
    stride: int, layers: str, strided: range, experts: dict[str, Any]
) -> None:
    config = RunConfig(
        SHAPE, AltUpConfig(width=1), MoEConfig(**experts), sequence=SequenceConfig(stride, layers, "stride_and_skip")
    )
    scores = sum(1 / stride**2 if n in strided else 1 for n in range(4)) * 2 * 4 * SHAPE.head_dim * SHAPE.seq_length
    assert flops_per_token(config) == pytest.approx(3 * (counted_forward(config) - scores), rel=1e-9)
    assert attention_flops(config) == pytest.approx(scores * SHAPE.seq_length)


def test_idle_experts_cost_their_router_row_alone() -> None:
    few, many = (RunConfig(SHAPE, moe=MoEConfig(num_experts=n)) for n in (4, 64))
    assert flops_per_token(many) - flops_per_token(few) == 6 * SHAPE.num_layers * SHAPE.hidden_size * 60


def test_parts_by_hand() -> None:
    """Two layers of width 2, the second with experts: each product in its part."""
    shape = ModelConfig(2, 4, 5, 2, 1, 3, 7)
    moe = MoEConfig(num_experts=8, layer_freq=2, top_k=2, ffn_hidden_size=5, shared_expert_size=3)
    parts = model_products(RunConfig(shape, AltUpConfig(width=2), moe))
    assert (parts.attention, parts.scores, parts.mixing, parts.output) == (2 * 48, 2 * 12, 2 * 24, 28)
    assert (parts.dense, parts.experts, parts.shared, parts.router) == (60, 120, 36, 32)
