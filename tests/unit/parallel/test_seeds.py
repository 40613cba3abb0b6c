"""Initial weights: a function of seed and global name alone, whatever part of a tensor is asked for."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altup_moe.altup.static import one_hot
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, SequenceConfig, TrainConfig
from altup_moe.model.reference.build import reference_model
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.seeds import BLOCK_ELEMENTS, derived_seed, initial, normal

CONFIG = RunConfig(ModelConfig(num_layers=8, init_method_std=0.03), AltUpConfig(width=4))


def whole(shape: tuple[int, ...]) -> TensorSlice:
    return tuple((0, n) for n in shape)


@settings(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 40), columns=st.integers(1, 12), block=st.sampled_from([1, 7, 24, 10_000]))
def test_a_slice_of_the_values_is_drawn_alone(data: st.DataObject, rows: int, columns: int, block: int) -> None:
    """Also when it begins or ends inside a block of rows: blocks are made small here."""
    tensor_slice = tuple(
        tuple(sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))))
        for n in (rows, columns)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("altup_moe.parallel.seeds.BLOCK_ELEMENTS", block)
        full = normal("x", (rows, columns), whole((rows, columns)), 1.0, 3)
        part = normal("x", (rows, columns), tensor_slice, 1.0, 3)
    assert torch.equal(part, full[slice(*tensor_slice[0]), slice(*tensor_slice[1])])


def test_a_slice_beyond_the_first_real_block() -> None:
    shape = (BLOCK_ELEMENTS // 64 + 100, 64)
    full = normal("x", shape, whole(shape), 1.0, 3)
    tensor_slice = ((shape[0] - 150, shape[0] - 50), (10, 20))
    assert torch.equal(normal("x", shape, tensor_slice, 1.0, 3), full[-150:-50, 10:20])
    # Blocks are drawn from generators of their own: the second does not repeat the first.
    assert not torch.equal(full[:100], full[-100:])


def test_one_dimension() -> None:
    assert torch.equal(normal("x", (9,), ((3, 7),), 1.0, 3), normal("x", (9,), ((0, 9),), 1.0, 3)[3:7])


def test_names_and_seeds_differ_and_repeat() -> None:
    shape = (64, 64)
    values = [normal(name, shape, whole(shape), 1.0, seed) for name in ("a", "b") for seed in (1, 2)]
    assert torch.equal(values[0], normal("a", shape, whole(shape), 1.0, 1))
    for i, one in enumerate(values):
        for other in values[:i]:
            assert abs(float((one * other).mean())) < 5 / 64  # five standard errors of no correlation


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    normal("a", (8, 8), whole((8, 8)), 1.0, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_seed_is_the_same_in_every_process() -> None:
    code = "from altup_moe.parallel.seeds import derived_seed; print(derived_seed(1234, 'model.norm.weight', 7))"
    # String hashing is salted differently there.
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )
    assert int(out.stdout) == derived_seed(1234, "model.norm.weight", 7)
    assert 0 <= derived_seed(0, "") < 1 << 63
    assert len({derived_seed(seed, name, n) for seed in (1, 2) for name in "ab" for n in (1, 2)}) == 8
    assert derived_seed(1, 12, 3) != derived_seed(1, 1, 23)


@pytest.mark.parametrize(
    ("name", "divisor"),
    [
        ("model.embed_tokens.weight", 1.0),
        ("lm_head.weight", 1.0),
        ("model.layers.3.self_attn.q_proj.weight", 1.0),
        ("model.layers.3.self_attn.o_proj.weight", 4.0),
        ("model.layers.3.mlp.gate_proj.weight", 1.0),
        ("model.layers.3.mlp.experts.2.up_proj.weight", 1.0),
        ("model.layers.3.mlp.experts.2.down_proj.weight", 4.0),
        ("model.layers.3.mlp.shared_expert.down_proj.weight", 4.0),
        ("model.layers.3.mlp.router.weight", 1.0),
    ],
)
def test_standard_deviation(name: str, divisor: float) -> None:
    """Of 8 layers, so that sqrt(2 num_layers) is 4."""
    value = initial(name, (200, 300), whole((200, 300)), CONFIG)
    assert value.dtype == torch.float32
    assert float(value.std()) == pytest.approx(0.03 / divisor, rel=0.02)  # standard error: 0.3 %
    assert abs(float(value.mean())) < 5 * 0.03 / divisor / math.sqrt(60_000)


def test_the_run_seed_counts() -> None:
    other = RunConfig(CONFIG.model, CONFIG.altup, train=TrainConfig(seed=9))
    name, shape = "lm_head.weight", (8, 8)
    assert not torch.equal(initial(name, shape, whole(shape), CONFIG), initial(name, shape, whole(shape), other))


def test_norms_biases_and_coefficients() -> None:
    for name in (
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
    ):
        assert torch.equal(initial(name, (9,), ((2, 6),), CONFIG), torch.ones(4))
    name = "model.layers.0.post_attention_layernorm.weight"
    assert torch.equal(initial(name, (9,), ((0, 9),), CONFIG), torch.ones(9))
    assert torch.equal(initial("model.layers.0.mlp.router.expert_bias", (4,), ((1, 3),), CONFIG), torch.zeros(2))
    assert torch.equal(initial("model.layers.6.altup.predict", (4, 4), whole((4, 4)), CONFIG), torch.eye(4))
    assert torch.equal(initial("model.layers.6.altup.correct", (4,), whole((4,)), CONFIG), torch.ones(4))
    for select, block in (("alternating", 2), ("same", 0)):
        config = RunConfig(altup=AltUpConfig(width=4, variant="round_robin", select=select))
        read = initial("model.layers.6.altup.read", (4,), whole((4,)), config)
        assert torch.equal(read, one_hot(4, block))
    strided = RunConfig(sequence=SequenceConfig(stride=4))
    predict = initial("model.layers.2.sequence.predict", (2,), whole((2,)), strided)
    assert predict.tolist() == [1.0, 0.0]
    assert initial("model.layers.2.sequence.correct", (1,), whole((1,)), strided).tolist() == [1.0]


def test_a_dynamic_stream_starts_with_a_router_that_nothing_heeds() -> None:
    config = RunConfig(ModelConfig(init_method_std=0.03), AltUpConfig(width=4, variant="dynamic"))
    prefix = "model.layers.6.altup"
    assert torch.equal(initial(f"{prefix}.router_norm", (9,), ((2, 6),), config), torch.ones(4))
    assert torch.equal(initial(f"{prefix}.prediction", (16, 4), ((4, 8), (0, 4)), config), torch.zeros(4, 4))
    assert torch.equal(initial(f"{prefix}.correction", (4, 4), whole((4, 4)), config), torch.zeros(4, 4))
    router = initial(f"{prefix}.router", (4, 900), whole((4, 900)), config)
    assert float(router.std()) == pytest.approx(0.03, rel=0.1)
    for end in ("altup_projections", "altup_unembed_projections"):
        name, shape = f"model.{end}.2.weight", (60, 60)
        full = initial(name, shape, whole(shape), config)
        assert float((full - torch.eye(60)).std()) == pytest.approx(0.03, rel=0.1)
        assert torch.equal(initial(name, shape, ((7, 11), (5, 40)), config), full[7:11, 5:40])


def test_an_encoder_decoder_is_drawn_as_its_reference() -> None:
    """Every tensor's size, layer by layer; AltUp coefficients and norms are the same numbers."""
    model = ModelConfig(
        2, 64, 96, 4, 4, vocab_size=500, kv_channels=24, share_embeddings_and_output_weights=False, arch="t5",
        num_decoder_layers=3,
    )  # fmt: skip
    altup, moe = AltUpConfig(2, recycled=False, cross_attention="wide"), MoEConfig(num_experts=2, layer_freq=2)
    config = RunConfig(model, altup, moe)
    torch.manual_seed(0)
    for name, expected in reference_model(config).named_parameters():
        got = initial(name, tuple(expected.shape), whole(tuple(expected.shape)), config)
        if "norm" in name or ".altup." in name:
            assert torch.equal(got, expected), name
        else:
            few = "relative" in name or "router" in name
            torch.testing.assert_close(got.std(), expected.std(), rtol=0.3 if few else 0.06, atol=0, msg=name)
