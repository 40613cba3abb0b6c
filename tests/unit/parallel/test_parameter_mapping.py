"""Names: the pieces of all ranks tile every tensor of the reference model, once per replica, under any layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from altup_moe.altup.shape import stream_width
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, SequenceConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.parallel.parameter_mapping import NamedTensor, Piece, Shard, pieces
from tests.variants import initial

SHAPE = {"hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 8, "num_query_groups": 4, "vocab_size": 64}
HEADS = {"kv_channels": 6, "qk_layernorm": True}
MODELS = {
    "dense": {},
    "wide heads with norms": {},
    "experts": {"num_experts": 4, "layer_freq": 2},
    "only experts": {"num_experts": 4},
    "stacked experts": {"num_experts": 4, "layer_freq": 2, "backend": "torch"},
    "shared expert": {"num_experts": 4, "layer_freq": 2, "shared_expert_size": 32},
    "partial experts": {"num_experts": 4, "layer_freq": 2, "partial": True},
    "expert load": {"num_experts": 4, "load_balancing_type": "global_aux_loss"},
    "expert bias": {"num_experts": 4, "score_function": "sigmoid", "expert_bias_update_rate": 0.01},
}
STREAMS = {
    "plain": {"width": 1},
    "altup": {"width": 2},
    "altup, wide tables": {"width": 4, "recycled": False},
    "gemma": {"width": 4, "variant": "gemma"},
    "round_robin": {"width": 2, "variant": "round_robin", "recycled": False},
    "hc": {"width": 4, "variant": "hc"},
    "dynamic": {"width": 4, "variant": "dynamic"},
    "sum": {"width": 2, "variant": "sum", "recycled": False},
    "plain, strided": {"width": 1},
    "altup, strided": {"width": 2},
    "altup, pooled": {"width": 2},
}
SEQUENCES = {
    "plain, strided": SequenceConfig(2, "0..-2"),
    "altup, strided": SequenceConfig(4, "1..-2"),
    "altup, pooled": SequenceConfig(4, "1..-1", "average_pool"),
}
STRIDED = {"0..-2": [0, 1, 2], "1..-2": [1, 2], "1..-1": [1, 2, 3]}
"""Of four layers."""


@dataclass(frozen=True)
class Layout:
    """Sizes of a layout. Expert ranks lie anywhere among the world's: every combination is looked at."""

    tensor: int
    expert: int
    expert_tensor: int
    stages: tuple[int, ...]


def run(model: str, stream: str, tied: bool, layers: int = 4) -> RunConfig:
    """A run of one of the models; `sum` is never tied."""
    tied = tied and stream != "sum"
    heads = HEADS if model == "wide heads with norms" else {}
    shape = ModelConfig(**SHAPE, **heads, num_layers=layers, seq_length=16, share_embeddings_and_output_weights=tied)
    sequence, moe = SEQUENCES.get(stream, SequenceConfig()), MoEConfig(**MODELS[model], ffn_hidden_size=20)
    return RunConfig(shape, AltUpConfig(**STREAMS[stream]), moe, sequence=sequence)


@cache
def expected_shapes(config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter and persistent buffer of the reference model."""
    with torch.device("meta"):
        model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def local_shapes(config: RunConfig, layout: Layout, first: int, count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Megatron's parameters of the chunk with layers [first, first + count), by name, as a tensor rank holds them.

    Written from Megatron's modules, not from the table under test.
    """
    m, a, moe = config.model, config.altup, config.moe
    tp, etp, d = layout.tensor, layout.expert_tensor, m.hidden_size
    embedded = d if a.recycled else a.width * d
    put_out = d if a.recycled or a.variant == "sum" else a.width * d
    wide = stream_width(a.width, a.variant) > 1
    if first == 0:
        yield "embedding.word_embeddings.weight", (m.vocab_size // tp, embedded)
        yield from ((f"expand.{n}.weight", (d, d)) for n in range(a.width - 1) if a.variant == "dynamic")
    for n in range(count):
        layer = f"decoder.layers.{n}" + (".layer" if wide else "")
        if config.sequence.stride > 1 and first + n in STRIDED[config.sequence.layers]:
            if config.sequence.method == "altup":
                yield f"{layer}.sequence.predict", (2,)
                yield f"{layer}.sequence.correct", (1,)
            layer += ".layer"
        channels = m.kv_channels or d // m.num_attention_heads
        q, kv = m.num_attention_heads * channels, 2 * m.num_query_groups * channels
        yield f"{layer}.input_layernorm.weight", (d,)
        yield f"{layer}.pre_mlp_layernorm.weight", (d,)
        yield f"{layer}.self_attention.linear_qkv.weight", ((q + kv) // tp, d)
        yield f"{layer}.self_attention.linear_proj.weight", (d, q // tp)
        if m.qk_layernorm:
            yield f"{layer}.self_attention.q_layernorm.weight", (channels,)
            yield f"{layer}.self_attention.k_layernorm.weight", (channels,)
        if wide:
            dynamic = {"router_norm": (d,), "router": (a.width, d), "prediction": (a.width**2, a.width)}
            dynamic["correction"] = (a.width, a.width)
            static = {} if a.variant == "dynamic" else initial(a.variant, a.width, 0)
            for name, shape in {n: tuple(v.shape) for n, v in static.items()}.items() or dynamic.items():
                yield f"decoder.layers.{n}.coefficients.{name}", shape
        if not moe.num_experts or (first + n + 1) % moe.layer_freq:
            yield f"{layer}.mlp.linear_fc1.weight", (2 * m.ffn_hidden_size // tp, d)
            yield f"{layer}.mlp.linear_fc2.weight", (d, m.ffn_hidden_size // tp)
            continue
        yield f"{layer}.mlp.router.weight", (moe.num_experts, d)
        if moe.expert_bias_update_rate:
            yield f"{layer}.mlp.router.expert_bias", (moe.num_experts,)
        if moe.load_balancing_type == "global_aux_loss":
            yield f"{layer}.mlp.router.expert_load", (moe.num_experts,)
        shared = m.ffn_hidden_size if moe.partial else moe.shared_expert_size
        if shared:
            yield f"{layer}.mlp.shared_experts.linear_fc1.weight", (2 * shared // tp, d)
            yield f"{layer}.mlp.shared_experts.linear_fc2.weight", (d, shared // tp)
        if moe.backend == "torch":
            held = moe.num_experts // layout.expert
            yield f"{layer}.mlp.experts.fc1", (held * 2 * moe.ffn_hidden_size // etp, d)
            yield f"{layer}.mlp.experts.fc2", (held * d, moe.ffn_hidden_size // etp)
            continue
        for e in range(moe.num_experts // layout.expert):
            prefix = f"{layer}.mlp.experts.local_experts.{e}"
            yield f"{prefix}.linear_fc1.weight", (2 * moe.ffn_hidden_size // etp, d)
            yield f"{prefix}.linear_fc2.weight", (d, moe.ffn_hidden_size // etp)
    if first + count == m.num_layers:
        yield from ((f"decoder.contract.{n}.weight", (d, d)) for n in range(a.width - 1) if a.variant == "dynamic")
        yield "decoder.final_layernorm.weight", (put_out,)
        if first > 0 or not m.share_embeddings_and_output_weights:
            yield "output_layer.weight", (m.vocab_size // tp, put_out)


def fill(target: torch.Tensor, index: tuple[slice, ...]) -> None:
    """Count the piece's elements."""
    assert target[index].numel() > 0
    target[index] += 1


def check_tiling(config: RunConfig, layout: Layout) -> None:
    """Every element of every global tensor is held equally often as there are replicas, each local one exactly once."""
    shapes = expected_shapes(config)
    held = {name: torch.zeros(shape, dtype=torch.int) for name, shape in shapes.items()}
    ranks = [
        Shard((t, layout.tensor), (e, layout.expert), (x, layout.expert_tensor))
        for t in range(layout.tensor)
        for e in range(layout.expert)
        for x in range(layout.expert_tensor)
    ]
    for shard in ranks:
        first = 0
        for count in layout.stages:
            for local_name, shape in local_shapes(config, layout, first, count):
                local = torch.zeros(shape, dtype=torch.int)
                for piece in pieces(local_name, first, shard, config):
                    assert piece.shape == shapes[piece.name], piece.name
                    extent = [b - a for a, b in piece.global_slice]
                    assert extent == [b - a for a, b in piece.local_slice]
                    fill(held[piece.name], piece.index)
                    fill(local, piece.local_index)
                assert (local == 1).all(), local_name
            first += count
    for name, count in held.items():
        split = layout.tensor
        if ".experts." in name:
            split = layout.expert * layout.expert_tensor
        elif name.endswith("norm.weight") or any(
            part in name for part in ("router", ".altup", "_projections.", ".sequence.")
        ):
            split = 1
        # On the last of several stages a tied output layer is a second copy of the embedding.
        copies = 2 if config.model.share_embeddings_and_output_weights and len(layout.stages) > 1 else 1
        replicas = len(ranks) // split * (copies if name == "model.embed_tokens.weight" else 1)
        assert (count == replicas).all(), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("model", MODELS)
def test_one_rank_holds_the_reference_model(model: str, stream: str, tied: bool) -> None:
    check_tiling(run(model, stream, tied), Layout(1, 1, 1, (4,)))


@settings(max_examples=60)
@given(
    model=st.sampled_from(sorted(MODELS)),
    stream=st.sampled_from(sorted(STREAMS)),
    tied=st.booleans(),
    tensor=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4]),
    expert_tensor=st.sampled_from([1, 2, 4]),
    stages=st.sampled_from([(4,), (2, 2), (1, 3), (3, 1), (1, 1, 1, 1), (1, 2, 1)]),
)
def test_ranks_of_any_layout_tile_every_tensor(
    model: str, stream: str, tied: bool, tensor: int, expert: int, expert_tensor: int, stages: tuple[int, ...]
) -> None:
    config = run(model, stream, tied)
    if not config.moe.num_experts:
        expert = expert_tensor = 1
    check_tiling(config, Layout(tensor, expert, expert_tensor, stages))


def test_the_checker_notices_a_hole_and_an_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property above is worth something: let every tensor rank take rank 0's rows, and it fails."""
    real, config = pieces, run("dense", "altup", False)

    def wrong(name: str, offset: int, shard: Shard, config: RunConfig) -> list[Piece]:
        return real(name, offset, Shard((0, shard.tensor[1]), shard.expert, shard.expert_tensor), config)

    monkeypatch.setitem(globals(), "pieces", wrong)
    with pytest.raises(AssertionError):
        check_tiling(config, Layout(2, 1, 1, (4,)))


def test_fused_qkv_is_queries_key_value_of_each_group() -> None:
    """8 query heads in 4 groups of 2 channels a head; tensor rank 1 of 2 holds groups 2 and 3."""
    config = run("dense", "altup", False)
    name = "decoder.layers.1.layer.self_attention.linear_qkv.weight"
    got = [
        (p.name.rsplit(".", 2)[1], p.global_slice[0], p.local_slice[0])
        for p in pieces(name, 2, Shard(tensor=(1, 2)), config)
    ]
    assert got == [
        ("q_proj", (8, 12), (0, 4)),
        ("k_proj", (4, 6), (4, 6)),
        ("v_proj", (4, 6), (6, 8)),
        ("q_proj", (12, 16), (8, 12)),
        ("k_proj", (6, 8), (12, 14)),
        ("v_proj", (6, 8), (14, 16)),
    ]
    assert {p.name.rsplit(".", 2)[0] for p in pieces(name, 2, Shard(), config)} == {"model.layers.3.self_attn"}


def test_gate_stands_above_up() -> None:
    gate, up = pieces("decoder.layers.0.mlp.linear_fc1.weight", 0, Shard(tensor=(1, 2)), run("dense", "plain", False))
    assert (gate.name, gate.global_slice[0], gate.local_slice[0]) == (
        "model.layers.0.mlp.gate_proj.weight",
        (12, 24),
        (0, 12),
    )
    assert (up.name, up.global_slice[0], up.local_slice[0]) == ("model.layers.0.mlp.up_proj.weight", (12, 24), (12, 24))


def test_expert_ranks_hold_consecutive_experts() -> None:
    config = run("only experts", "plain", False)
    name = "decoder.layers.0.mlp.experts.local_experts.1.linear_fc2.weight"
    (piece,) = pieces(name, 0, Shard(expert=(1, 2), expert_tensor=(1, 2)), config)
    assert piece.name == "model.layers.0.mlp.experts.3.down_proj.weight"
    assert piece.global_slice == ((0, 16), (10, 20))


@pytest.mark.parametrize(
    "name",
    [
        "decoder.layers.0.layer.self_attention.linear_qkv.bias",
        "decoder.layers.0.mlp.new.weight",
        "decoder.final_layernorm.bias",
        "position_embeddings.weight",
        "",
    ],
)
def test_an_unknown_parameter_is_an_error(name: str) -> None:
    with pytest.raises(KeyError, match="no global name"):
        pieces(name, 0, Shard(), run("experts", "altup", False))


def test_keys_tell_chunks_apart() -> None:
    first, second = (NamedTensor(chunk, "decoder.layers.0.x", torch.zeros(1), []) for chunk in (0, 1))
    assert first.key != second.key
