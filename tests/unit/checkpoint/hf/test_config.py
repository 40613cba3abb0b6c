"""The pure parts of the door to Hugging Face: names, defaults of configurations, cutting of files."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_balance
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func as qwen3_moe_balance

from altup_moe.checkpoint.hf.balance import balance_lines
from altup_moe.checkpoint.hf.config import FAMILIES, from_hub
from altup_moe.checkpoint.hf.convert import special_tokens
from altup_moe.checkpoint.hf.files import cut_shards
from altup_moe.checkpoint.hf.names import hub_name
from altup_moe.checkpoint.hf.plain import plain_config, plain_family
from altup_moe.checkpoint.write import TensorSpec
from altup_moe.config import AltUpConfig, RunConfig, SequenceConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.layers import load_balancing_loss

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 100_000}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("name", "family", "theirs"),
    [
        ("model.embed_tokens.weight", "mixtral", "model.embed_tokens.weight"),
        ("model.layers.2.mlp.router.weight", "mixtral", "model.layers.2.block_sparse_moe.gate.weight"),
        ("model.layers.2.mlp.router.weight", "qwen3_moe", "model.layers.2.mlp.gate.weight"),
        (
            "model.layers.2.mlp.experts.11.down_proj.weight",
            "mixtral",
            "model.layers.2.block_sparse_moe.experts.11.w2.weight",
        ),
        ("model.layers.2.mlp.experts.1.up_proj.weight", "qwen3_moe", "model.layers.2.mlp.experts.1.up_proj.weight"),
        ("model.layers.2.mlp.gate_proj.weight", "llama", "model.layers.2.mlp.gate_proj.weight"),
    ],
)
def test_names(name: str, family: str, theirs: str) -> None:
    assert hub_name(name, family) == theirs


# T5 has other fields, and a test of its own (test_convert_t5).
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"t5"}))
def test_there_and_back(family: str) -> None:
    """What a plain configuration says is read as the model it was made from."""
    hub = from_hub({"model_type": family, **SIZES, **EXPERTS, "norm_topk_prob": True, "sliding_window": None})
    run = RunConfig(hub.model, AltUpConfig(width=1), hub.moe)
    assert hub.model.seq_length == 4096  # of 100,000: a default that fits a laptop
    again = from_hub(plain_config(run, "float32", {}))
    assert (again.model, again.moe) == (hub.model, hub.moe)
    assert plain_family(run) == ("llama" if family == "mistral" else family)


def test_absent_fields_are_transformers_defaults() -> None:
    mixtral = from_hub({"model_type": "mixtral", **SIZES, **EXPERTS}).model
    assert (mixtral.rotary_base, mixtral.layernorm_epsilon) == (1_000_000, 1e-5)
    mistral = from_hub({"model_type": "mistral", **SIZES})
    assert (mistral.window, mistral.positions, mistral.model.seq_length) == (4096, 4096, 4096)
    qwen3 = from_hub({"model_type": "qwen3", **SIZES})
    assert (qwen3.model.head_dim, qwen3.window, qwen3.model.qk_layernorm) == (128, None, True)
    assert from_hub({"model_type": "llama", **SIZES}).model.kv_channels is None


def test_dense_layers_that_are_every_other() -> None:
    content = {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "norm_topk_prob": True, "mlp_only_layers": [0, 2]}
    assert from_hub(content).moe.layer_freq == 2


def test_files_are_cut_at_a_limit() -> None:
    specs = {name: TensorSpec((10,), "F32") for name in "abc"}
    assert cut_shards(specs, 120) == {"model.safetensors": ["a", "b", "c"]}
    two = {"model-00001-of-00002.safetensors": ["a", "b"], "model-00002-of-00002.safetensors": ["c"]}
    assert cut_shards(specs, 119) == two
    assert len(cut_shards({**specs, "d": TensorSpec((99,), "BF16")}, 1)) == 4


def test_special_tokens_are_the_generations_else_the_tokenizers() -> None:
    got = special_tokens({"eos_token_id": [1, 2], "pad_token_id": None}, 7)
    assert got == {"bos_token_id": 7, "eos_token_id": [1, 2], "pad_token_id": 7}
    assert special_tokens({}, 7, 3) == {"bos_token_id": 7, "eos_token_id": 7, "pad_token_id": 3}
    t5 = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    assert special_tokens({}, 1, 0, 0) == t5
    assert special_tokens({"decoder_start_token_id": 5}, 1, 0, 0) == {**t5, "decoder_start_token_id": 5}


@pytest.mark.parametrize(("family", "step"), [("mixtral", 1), ("qwen3_moe", 1), ("qwen3_moe", 2)])
@pytest.mark.parametrize(("layers", "top_k"), [(4, 2), (6, 3)])
def test_the_weight_of_the_balance_loss_is_that_of_transformers(
    family: str, step: int, layers: int, top_k: int
) -> None:
    """Layers of like loads: our summed loss with the converted weight is theirs with their own."""
    theirs = {"mixtral": mixtral_balance, "qwen3_moe": qwen3_moe_balance}[family]
    content = {"model_type": family, **SIZES, **EXPERTS, "num_hidden_layers": layers, "num_experts_per_tok": top_k}
    content |= {"norm_topk_prob": True, "router_aux_loss_coef": 0.02, "decoder_sparse_step": step}
    hub = from_hub(content)
    with_experts = len(range(step - 1, layers, step))
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0.0, 0.0, -1.0])
    expected = 0.02 * theirs((logits,) * with_experts, 4, top_k)
    ours = hub.moe.aux_loss_coeff * with_experts * load_balancing_loss(logits, top_k, "softmax")
    assert float(ours) == pytest.approx(float(expected), rel=1e-5)
    # And out again, as the number that it was.
    run = RunConfig(hub.model, AltUpConfig(width=1), hub.moe)
    assert plain_config(run, "float32", {})["router_aux_loss_coef"] == 0.02
    (line,) = balance_lines(run)
    assert f"is router_aux_loss_coef 0.02 x top_k {top_k} / {with_experts} MoE layers" in line


def test_layers_of_unlike_loads_are_pooled_there() -> None:
    """What the line of a conversion says: opposite layers look balanced in Hugging Face's loss, and not in ours."""
    logits = 3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([3.0, 1.0, -1.0, -3.0])
    pair = (logits, logits.flip(1))
    assert float(mixtral_balance(pair, 4, 2)) == pytest.approx(2.0, rel=0.05)
    assert float(sum(load_balancing_loss(layer, 2, "softmax") for layer in pair)) > 2.5


def test_an_import_keeps_the_longest_sequence_of_its_model() -> None:
    content = {"model_type": "llama", **SIZES, "max_position_embeddings": 4096}
    short = from_hub(content, 1024).model
    assert (short.seq_length, short.positions) == (1024, 4096)
    whole = from_hub(content).model
    assert (whole.seq_length, whole.max_positions) == (4096, None)
    for model, says in ((short, 4096), (whole, 4096), (replace(short, max_positions=None), 1024)):
        run = RunConfig(model, AltUpConfig(width=1))
        assert plain_config(run, "float32", {})["max_position_embeddings"] == says
        assert AltUpMoEConfig.from_run(run).max_position_embeddings == says


def test_a_wide_stream_is_not_plain() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match=r"altup\.width=2"):
        plain_family(config)
    plain = replace(config, altup=AltUpConfig(width=1))
    assert plain_family(plain) == "llama"
    with pytest.raises(ValueError, match=r"altup\.correct='?delayed"):
        plain_family(replace(config, altup=AltUpConfig(width=1, correct="delayed")))
    with pytest.raises(ValueError, match=r"sequence\.stride=4"):
        plain_family(replace(plain, sequence=SequenceConfig(stride=4)))
