"""The plain PyTorch model: against other people's models, against the table of variants, against itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    Qwen3Config,
)

from altup_moe.altup.variants import VARIANTS
from altup_moe.model.reference.cache_name import CACHE
from altup_moe.model.reference.gpt import AltUpMoEConfig, AltUpMoEForCausalLM, step_loss
from altup_moe.model.reference.layers import DROPLESS
from tests.models import assert_same_model

TINY: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 32, "initializer_range": 0.2, "moe_intermediate_size": 24,
}  # fmt: skip
MOE: dict[str, Any] = {"num_experts": 4, "moe_layer_freq": 2, "moe_shared_expert_size": 16}
SIGMOID: dict[str, Any] = {**MOE, "moe_score_function": "sigmoid", "moe_expert_bias_update_rate": 0.01}
STREAMS: list[dict[str, Any]] = [
    {"altup_width": 1},
    {"altup_width": 2, "altup_variant": "altup", "use_qk_norm": True, "head_dim": 12},
    {"altup_width": 4, "altup_variant": "altup", "altup_recycled": False},
    {"altup_width": 2, "altup_variant": "gemma", "altup_recycled": False, "altup_select": "same"},
    {"altup_width": 4, "altup_variant": "gemma"},
    {"altup_width": 2, "altup_variant": "round_robin"},
    {"altup_width": 4, "altup_variant": "hc", "altup_recycled": False},
    {"altup_width": 4, "altup_variant": "dynamic", "altup_coef_clip": 0.5},
    {"altup_width": 4, "altup_variant": "wide_residual"},
    {"altup_width": 4, "altup_variant": "mhc", "altup_level": "branch"},
    {"altup_width": 2, "altup_variant": "mhc_single_pass", "altup_level": "branch"},
    {"altup_width": 2, "altup_variant": "mhc_single_pass", "altup_level": "branch", "altup_recycled": False},
    {"altup_width": 4, "altup_variant": "independent_hc", "altup_level": "branch"},
    {"altup_width": 2, "altup_variant": "gated_residual", "altup_level": "branch"},
    {"altup_width": 2, "altup_variant": "sum", "altup_recycled": False, "tie_word_embeddings": False},
]


def build(seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any) -> AltUpMoEForCausalLM:
    """A tiny model with its coefficients pushed off their initial values."""
    torch.manual_seed(seed)
    model = AltUpMoEForCausalLM(AltUpMoEConfig(**{**TINY, **fields})).eval()
    for name, p in model.named_parameters():
        if ".altup." in name or "altup_head" in name or "norm" in name:
            p.data.add_(0.3 * torch.randn_like(p))
    return model.to(dtype)


def tokens(batch: int = 2, length: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def test_llama_is_the_plain_dense_model() -> None:
    shared = {k: v for k, v in TINY.items() if not k.startswith("moe")}
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = LlamaConfig(**shared, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope)
    ours, llama = build(tie_word_embeddings=False, rotary_base=5000), LlamaForCausalLM(config).eval()
    llama.load_state_dict(ours.state_dict())  # strict: the global names are Llama's
    torch.testing.assert_close(ours(tokens()).logits, llama(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 8.0, 32.0])
def test_stretched_rotary_is_llama3s(factor: float) -> None:
    """Positions far apart, so that slow waves count."""
    shared = {k: v for k, v in TINY.items() if not k.startswith("moe")}
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(**shared, rms_norm_eps=1e-5, rope_parameters=rope, head_dim=24, tie_word_embeddings=True)
    ours, llama = build(rotary_base=500000, rotary_scaling_factor=factor, head_dim=24), LlamaForCausalLM(config).eval()
    llama.load_state_dict(ours.state_dict(), strict=False)
    positions = torch.arange(9)[None] * 1500
    got, expected = (model(tokens(), position_ids=positions).logits for model in (ours, llama))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    plain = build(rotary_base=500000, head_dim=24)(tokens(), position_ids=positions).logits
    assert ((plain - got).abs().max() > 1e-2) == (factor > 1)


def test_qwen3_is_the_dense_model_with_norms_of_queries_and_keys() -> None:
    shared = {k: v for k, v in TINY.items() if not k.startswith("moe")}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = Qwen3Config(**shared, head_dim=12, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_parameters=rope)
    ours = build(tie_word_embeddings=False, head_dim=12, use_qk_norm=True)
    qwen = AutoModelForCausalLM.from_config(config).eval()
    qwen.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(tokens()).logits, qwen(tokens()).logits, rtol=1e-5, atol=1e-5)


def test_mixtral_is_the_plain_softmax_top2_model() -> None:
    ours = build(tie_word_embeddings=False, num_experts=4)
    config = MixtralConfig(
        **{k: v for k, v in TINY.items() if k not in ("moe_intermediate_size", "intermediate_size")},
        intermediate_size=TINY["moe_intermediate_size"], num_local_experts=4, num_experts_per_tok=2, rms_norm_eps=1e-5,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, sliding_window=None,
    )  # fmt: skip
    state = {k.replace("mlp.router", "mlp.gate"): v for k, v in ours.state_dict().items() if ".experts." not in k}
    for n, layer in enumerate(ours.model.layers):
        experts, prefix = layer.mlp.experts, f"model.layers.{n}.mlp.experts"
        gate_up = [torch.cat((e.gate_proj.weight, e.up_proj.weight)) for e in experts]
        state[f"{prefix}.gate_up_proj"] = torch.stack(gate_up)
        state[f"{prefix}.down_proj"] = torch.stack([e.down_proj.weight for e in experts])
    mixtral = AutoModelForCausalLM.from_config(config).eval()
    mixtral.load_state_dict(state)
    torch.testing.assert_close(ours(tokens()).logits, mixtral(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["altup", "gemma", "hc", "dynamic"])
@pytest.mark.parametrize("width", [2, 4])
def test_recycled_starts_as_the_plain_model(variant: str, width: int) -> None:
    fields = {**MOE, "rms_norm_eps": 1e-10}  # the final norm sees K times the features: equal up to its epsilon
    plain = build(**fields)
    wide = AltUpMoEForCausalLM(AltUpMoEConfig(**TINY, **fields, altup_width=width, altup_variant=variant)).eval()
    missing, unexpected = wide.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    coefficients = [name for name in missing if "projections" not in name]
    assert all(".altup." in name for name in coefficients)
    assert len(coefficients) == len(VARIANTS[variant].coefficients) * TINY["num_hidden_layers"]
    for name in set(missing) - set(coefficients):
        end = wide.get_parameter(name)  # the identity, and what sets the blocks apart
        assert 0.1 < (end - torch.eye(32)).std() < 0.3
        end.data.copy_(torch.eye(32))
    loss, plain_loss = wide(tokens(), labels=tokens()).loss, plain(tokens(), labels=tokens()).loss
    torch.testing.assert_close(loss, plain_loss, rtol=1e-6, atol=1e-6)


def one_line_form(model: AltUpMoEForCausalLM, ids: Tensor) -> Tensor:
    """Logits by u = r X, y = F(u), X' = M X + g (x) y, with blocks as an axis of the features."""
    config, (b, s) = model.config, ids.shape
    k, d = config.altup_width, config.hidden_size
    embedded = model.model.embed_tokens(ids)
    x_BSKD = torch.stack([embedded] * k, 2) if config.altup_recycled else embedded.view(b, s, k, d)
    positions = torch.arange(s)[None]
    for n, layer in enumerate(model.model.layers):
        j = n % k if config.altup_select == "alternating" else 0
        e_j, c = torch.eye(k, dtype=x_BSKD.dtype)[j], dict(layer.altup.named_parameters())
        if config.altup_variant == "round_robin":
            r, m, g = c["read"], torch.eye(k, dtype=x_BSKD.dtype), c["scale"] * e_j
        elif config.altup_variant == "hc":
            r, m, g = c["read"], c["mix"] - torch.outer(c["write"], c["read"]), c["write"]
        else:
            g, m = c["correct"], (torch.eye(k) - torch.outer(c["correct"], e_j)) @ c["predict"]
            r = e_j if config.altup_variant == "altup" else e_j @ c["predict"]
        u_BSD = torch.einsum("k,bskd->bsd", r, x_BSKD)
        y_BSD, _ = layer.compute(u_BSD, DROPLESS, positions, None, None)
        x_BSKD = torch.einsum("ik,bskd->bsid", m, x_BSKD) + torch.einsum("i,bsd->bsid", g, y_BSD)
    out = x_BSKD.sum(2) if config.altup_recycled else x_BSKD.reshape(b, s, k * d)
    return model.model.norm(out) @ model.model.embed_tokens.weight.t()


@pytest.mark.parametrize("variant", ["altup", "gemma", "round_robin", "hc"])
@pytest.mark.parametrize("recycled", [True, False])
@pytest.mark.parametrize(("width", "select"), [(2, "alternating"), (2, "same"), (4, "alternating")])
def test_variants_are_their_read_mix_write(variant: str, recycled: bool, width: int, select: str) -> None:
    fields = {"altup_variant": variant, "altup_recycled": recycled, "altup_width": width, "altup_select": select}
    model = build(dtype=torch.float64, num_hidden_layers=4, num_experts=2, moe_layer_freq=2, **fields)
    torch.testing.assert_close(model(tokens()).logits, one_line_form(model, tokens()), rtol=1e-10, atol=1e-10)


def test_sum_is_a_plain_model_on_summed_embeddings() -> None:
    summed = build(altup_variant="sum", altup_width=4, tie_word_embeddings=False)
    assert summed.model.embed_tokens.weight.shape == (61, 4 * 32)
    plain = build(tie_word_embeddings=False)
    state = dict(summed.state_dict())
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].view(61, 4, 32).sum(1)
    plain.load_state_dict(state)
    torch.testing.assert_close(summed(tokens()).logits, plain(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stream", STREAMS)
def test_no_position_sees_a_later_one(stream: dict[str, Any]) -> None:
    model, ids = build(**MOE, **stream), tokens()
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 61
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=1e-5, atol=1e-5)
    assert (before[:, 5:] - after[:, 5:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("experts", [{}, MOE, SIGMOID])
def test_greedy_with_a_cache_is_greedy_without(stream: dict[str, Any], experts: dict[str, Any]) -> None:
    model, kwargs = build(**experts, **stream), {"max_new_tokens": 8, "do_sample": False}
    cached = model.generate(tokens(), use_cache=True, **kwargs)
    assert cached.shape == (2, 17)
    assert torch.equal(cached, model.generate(tokens(), use_cache=False, **kwargs))


def test_a_cache_of_fixed_size_generates_the_same() -> None:
    model, kwargs = build(**MOE, altup_width=2), {"max_new_tokens": 8, "do_sample": False}
    fixed = model.generate(tokens(), cache_implementation="static", **kwargs)
    assert torch.equal(fixed, model.generate(tokens(), **kwargs))


def test_sampling_from_the_nucleus_with_a_cache_is_the_same_without() -> None:
    model, drawn = build(**MOE, altup_width=2), []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(model.generate(tokens(), use_cache=use_cache, max_new_tokens=8, do_sample=True, top_p=0.9))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], model.generate(tokens(), max_new_tokens=8, do_sample=False))


def test_prompts_of_unequal_length_generate_as_alone() -> None:
    model = build(**MOE, altup_width=2, pad_token_id=0)
    long, short = tokens(1, 9, seed=2), tokens(1, 4, seed=3)
    batch = torch.cat((long, torch.cat((torch.zeros(1, 5, dtype=torch.long), short), 1)))
    padding = torch.ones_like(batch)
    padding[1, :5] = 0
    torch.testing.assert_close(model(batch, padding).logits[1, 5:], model(short).logits[0], rtol=1e-5, atol=1e-5)
    kwargs = {"max_new_tokens": 8, "do_sample": False}
    together = model.generate(batch, attention_mask=padding, **kwargs)
    assert torch.equal(together[0], model.generate(long, **kwargs)[0])
    assert torch.equal(together[1, 5:], model.generate(short, **kwargs)[0])


@pytest.mark.parametrize("stream", STREAMS)
def test_saved_and_loaded_through_the_auto_classes(stream: dict[str, Any], tmp_path: Path) -> None:
    model = build(**SIGMOID, **stream)
    model.step_taken({1: torch.tensor([9, 1, 5, 5])})
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == model.config.to_diff_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is AltUpMoEForCausalLM
    assert_same_model(loaded, model, lambda of: of(tokens()).logits)


@pytest.mark.parametrize(("variant", "count"), [("altup", 7), ("dynamic", 13)])
def test_half_precision_leaves_coefficients_and_bias_alone(variant: str, count: int, tmp_path: Path) -> None:
    model = build(**SIGMOID, altup_width=2, altup_variant=variant)
    model.step_taken({1: torch.tensor([9, 1, 5, 5])})
    kept = {k: v.clone() for k, v in model.state_dict().items() if ".altup." in k or "expert_bias" in k}
    assert len(kept) == count
    model.save_pretrained(tmp_path)
    exact = model(tokens(), labels=tokens()).loss
    halves = [model.to(torch.bfloat16), AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)]
    for half in halves:
        for name, value in half.state_dict().items():
            assert value.dtype == (torch.float32 if name in kept else torch.bfloat16), name
        for name, value in kept.items():
            assert torch.equal(half.state_dict()[name], value), name
        out = half(tokens(), labels=tokens())
        assert out.logits.dtype == torch.bfloat16
        assert abs(out.loss - exact) < 0.05 * exact
        half.losses(tokens(), tokens()).lm_sum.backward()
        assert {p.grad.dtype for p in half.model.layers[0].altup.parameters()} == {torch.float32}


def expected_names(config: AltUpMoEConfig) -> set[str]:
    names = {"model.embed_tokens.weight", "model.norm.weight"}
    names |= set() if config.tie_word_embeddings else {"lm_head.weight"}
    coefficients = {
        "round_robin": ("read", "scale"),
        "hc": ("read", "mix", "write"),
        "dynamic": ("router_norm", "router", "prediction", "correction"),
        "sum": (),
        "wide_residual": ("read", "write"),
        **dict.fromkeys(("mhc", "mhc_single_pass"), ("project", "read_bias", "write_bias", "mix_bias", "scale")),
        "independent_hc": ("project", "read_bias", "write_bias", "scale"),
        "gated_residual": ("norm", "gate_down", "gate_up", "inject"),
    }.get(config.altup_variant, ("predict", "correct"))
    if config.altup_variant == "dynamic":
        ends, others = ("altup_projections", "altup_unembed_projections"), range(config.altup_width - 1)
        names |= {f"model.{end}.{n}.weight" for end in ends for n in others}
    head = {
        "wide_residual": ("read",),
        **dict.fromkeys(("mhc", "independent_hc"), ("project", "read_bias", "scale")),
        "gated_residual": ("norm", "gate_down", "gate_up"),
    }.get(config.altup_variant, ())
    names |= {f"model.altup_head.{c}" for c in head}
    steps = [""] if config.altup_level == "layer" else ["self_attn.", "mlp."]
    mlp = [f"{p}_proj.weight" for p in ("gate", "up", "down")]
    for n in range(config.num_hidden_layers):
        inside = ["input_layernorm.weight", "post_attention_layernorm.weight"]
        inside += [f"self_attn.{p}_proj.weight" for p in "qkvo"]
        inside += [f"self_attn.{p}_norm.weight" for p in "qk" if config.use_qk_norm]
        inside += [f"altup.{step}{c}" for step in steps for c in coefficients if config.altup_width > 1]
        if config.num_experts and (n + 1) % config.moe_layer_freq == 0:
            inside += ["mlp.router.weight"] + (["mlp.router.expert_bias"] if config.moe_expert_bias_update_rate else [])
            inside += [f"mlp.experts.{e}.{p}" for e in range(config.num_experts) for p in mlp]
            inside += [f"mlp.shared_expert.{p}" for p in mlp if config.moe_shared_expert_size]
        else:
            inside += [f"mlp.{p}" for p in mlp]
        names |= {f"model.layers.{n}.{name}" for name in inside}
    return names


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("experts", [{}, MOE, SIGMOID, {"num_experts": 2}])
def test_names_are_the_global_names(stream: dict[str, Any], experts: dict[str, Any]) -> None:
    model = build(**{"tie_word_embeddings": stream["altup_width"] == 1, **stream}, **experts)
    assert set(model.state_dict()) == expected_names(model.config)
    assert {n for n, _ in model.named_buffers()} == {n for n in model.state_dict() if n.endswith("expert_bias")}


def test_initial_weights() -> None:
    config = AltUpMoEConfig(**{**TINY, "hidden_size": 128, "num_hidden_layers": 2}, **SIGMOID, altup_width=2)
    for name, p in AltUpMoEForCausalLM(config).named_parameters():
        if "norm" in name or "correct" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        elif "predict" in name:
            assert torch.equal(p, torch.eye(2)), name
        else:
            std = 0.2 / math.sqrt(2 * 2) if "o_proj" in name or "down_proj" in name else 0.2
            assert abs(p.std() - std) < 0.12 * std, name
            assert abs(p.mean()) < 0.15 * std, name
    read = AltUpMoEForCausalLM(AltUpMoEConfig(**TINY, altup_width=2, altup_variant="round_robin")).model.layers[1].altup
    assert read.read.tolist() == [0.0, 1.0]
    assert read.scale.tolist() == [1.0]
    hyper = AltUpMoEForCausalLM(AltUpMoEConfig(**TINY, altup_width=2, altup_variant="hc")).model.layers[1].altup
    assert (hyper.read.tolist(), hyper.mix.tolist()) == ([0.0, 1.0], torch.eye(2).tolist())
    assert hyper.write.tolist() == [1.0, 1.0]
    dynamic = AltUpMoEForCausalLM(AltUpMoEConfig(**TINY, altup_width=2, altup_variant="dynamic")).model.layers[1].altup
    assert not dynamic.prediction.any()
    assert not dynamic.correction.any()
    assert torch.equal(dynamic.router_norm, torch.ones(32))
    assert 0.1 < dynamic.router.std() < 0.3


@pytest.mark.parametrize("stream", [*STREAMS[2:3], *STREAMS[4:8]])
def test_coefficient_gradients_are_finite_differences(stream: dict[str, Any]) -> None:
    model, ids, step = build(dtype=torch.float64, **stream), tokens(), 1e-5

    def loss() -> Tensor:
        return model.losses(ids, ids.roll(-1, 1)).lm_sum

    loss().backward()
    for p in model.model.layers[1].altup.parameters():
        for i in range(min(p.numel(), 5)):
            sides = []
            for sign in (1, -1):
                p.data.view(-1)[i] += sign * step
                sides.append(loss().item())
                p.data.view(-1)[i] -= sign * step
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(p.grad.view(-1)[i].item(), rel=1e-5, abs=1e-6)


def test_every_parameter_has_a_gradient_though_an_expert_is_idle() -> None:
    model = build(**SIGMOID, altup_width=2)
    model.step_taken({1: torch.tensor([0, 1, 2, 10**6])})
    for _ in range(300):  # pushes expert 3 out of every choice
        model.step_taken({1: torch.tensor([0, 0, 0, 9])})
    losses = model.losses(tokens(), tokens())
    assert losses.counts[1][3] == 0
    step_loss([losses]).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert (p.grad.abs().sum() > 0) == (".experts.3." not in name), name


def test_losses_count_masked_tokens_and_agree_with_labels() -> None:
    model, ids = build(**MOE), tokens()
    mask = torch.ones(2, 9)
    mask[:, -1] = 0
    ours = model.losses(ids, ids.roll(-1, 1), mask)
    assert ours.num_tokens == 16
    torch.testing.assert_close(ours.lm_sum / ours.num_tokens, model(ids, labels=ids).loss)
    everything = model.losses(ids, ids.roll(-1, 1))
    assert everything.num_tokens == 18
    assert everything.lm_sum > ours.lm_sum
    assert torch.equal(everything.counts[1], ours.counts[1])  # routing sees every position


def test_logits_to_keep() -> None:
    model, ids = build(), tokens()
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, model(ids).logits[:, -2:])


@pytest.mark.parametrize("dropout", ["hidden_dropout", "attention_dropout"])
def test_dropout_only_while_training(dropout: str) -> None:
    model, ids = build(**{dropout: 0.5}), tokens()
    assert torch.equal(model(ids).logits, build()(ids).logits)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.1


def test_a_cache_is_taken_under_both_names() -> None:
    model, ids = build(), tokens()
    whole = model(ids, use_cache=False).logits
    for name in ("past_key_values", "cache"):
        first = model(ids[:, :5], use_cache=True)
        assert first[CACHE].get_seq_length() == 5
        then = model(ids[:, 5:], **{name: first[CACHE]}).logits
        torch.testing.assert_close(then, whole[:, 5:])
    with pytest.raises(ValueError, match="two caches"):
        model(ids, cache=DynamicCache(), past_key_values=DynamicCache())
