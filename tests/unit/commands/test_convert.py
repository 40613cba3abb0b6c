"""In from every family, out again bit for bit; every model of ours out as its own class; every refusal by its field."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import altup_moe.checkpoint.hf.convert as hf_convert
import altup_moe.inference.hub as hub
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.tensors import items
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config import AltUpConfig, LogConfig, ModelConfig, MoEConfig, RunConfig
from altup_moe.config.load import load_config, save_config
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.data.tokenizer import train_bpe
from altup_moe.inference.generate import continuation
from altup_moe.inference.load_run import load_run, tokenizer_dir
from altup_moe.model.reference import gpt
from altup_moe.model.reference.gpt import AltUpMoEConfig, AltUpMoEForCausalLM
from tests.command import command
from tests.models import assert_same_model
from tests.unit.commands.hub_models import MODELS, TEXT, save_model

main = command("convert")

MODEL = ModelConfig(
    num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=2, seq_length=32,
    vocab_size=300, init_method_std=0.2,
)  # fmt: skip
MOE = MoEConfig(num_experts=4, layer_freq=2, ffn_hidden_size=24, shared_expert_size=16)
SIGMOID = replace(MOE, score_function="sigmoid", expert_bias_update_rate=0.01, load_balancing_type="global_aux_loss")
OURS: dict[str, RunConfig] = {
    "plain": RunConfig(MODEL, AltUpConfig(width=1)),
    "altup 2": RunConfig(MODEL, AltUpConfig(width=2), SIGMOID),
    "altup 4, wide tables": RunConfig(MODEL, AltUpConfig(width=4, recycled=False), MOE),
    "gemma 4": RunConfig(replace(MODEL, qk_layernorm=True, kv_channels=12), AltUpConfig(width=4, variant="gemma")),
    "round_robin 2": RunConfig(
        replace(MODEL, share_embeddings_and_output_weights=False), AltUpConfig(width=2, variant="round_robin"), MOE
    ),
    "hc 4": RunConfig(MODEL, AltUpConfig(width=4, variant="hc")),
    "mhc 4": RunConfig(MODEL, AltUpConfig(width=4, variant="mhc", level="branch"), MOE),
    "mhc_single_pass 2": RunConfig(MODEL, AltUpConfig(width=2, variant="mhc_single_pass", level="branch")),
    "delayed plain": RunConfig(MODEL, AltUpConfig(width=1, correct="delayed", level="branch"), MOE),
    "delayed altup 2": RunConfig(MODEL, AltUpConfig(width=2, correct="delayed"), MOE),
    "delayed hc 4": RunConfig(MODEL, AltUpConfig(width=4, variant="hc", correct="delayed")),
    "gated_residual 2": RunConfig(MODEL, AltUpConfig(width=2, variant="gated_residual", level="branch")),
    "wide_residual 4": RunConfig(MODEL, AltUpConfig(width=4, variant="wide_residual")),
    "dynamic 4, partial experts": RunConfig(
        MODEL, AltUpConfig(width=4, variant="dynamic", coef_clip=0.1), replace(MOE, shared_expert_size=0, partial=True)
    ),
    "sum 2": RunConfig(
        replace(MODEL, share_embeddings_and_output_weights=False),
        AltUpConfig(width=2, variant="sum", recycled=False),
    ),
}


def tokens() -> Tensor:
    return torch.randint(0, 300, (2, 30), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model.eval()(tokens(), use_cache=False).logits


def write_run(run_dir: Path, config: RunConfig) -> AltUpMoEForCausalLM:
    """A run's directory with random weights at step 7; returns the model."""
    torch.manual_seed(0)
    config = replace(config, log=LogConfig(run_dir=str(run_dir)))
    model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config)).eval()
    for name, tensor in model.state_dict().items():
        if ".altup." in name or "norm" in name or "router.expert_" in name:
            tensor.add_(0.3 * torch.randn_like(tensor))
    state = {f"weights/{name}": tensor for name, tensor in model.state_dict().items()}
    specs = {name: TensorSpec(tuple(tensor.shape), "F32") for name, tensor in state.items()}
    head = Manifest(7, 7 * config.train.global_batch_size, 0, 7, 7, 1, "", config.to_dict())
    write_checkpoint(
        checkpoints_dir(run_dir), head, specs, single_process_plan(specs), lambda name, _: items(state[name])
    )
    save_config(config, run_dir / "config.yaml")
    train_bpe([TEXT], 290, tokenizer_dir(run_dir))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_in_and_out_again(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run_dir, plain = (tmp_path / part for part in ("source", "run", "plain"))
    theirs = save_model(source, name, shard="60KB")
    assert (source / "model.safetensors.index.json").is_file()
    assert main(["import", str(source), str(run_dir)]) == 0
    assert "logits on 2 x " in capsys.readouterr().out
    run = load_run(run_dir)
    assert run.step == 0
    assert load_config(run_dir / "config.yaml") == replace(run.config, data=replace(run.config.data, shuffle=None))
    torch.testing.assert_close(logits(run.model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert continuation(run, "the cat", 3, 0.0, 1.0, 0) is not None
    assert main(["export", str(run_dir), str(plain), "--plain"]) == 0
    again = AutoModelForCausalLM.from_pretrained(plain)
    assert type(again).__name__ == type(theirs).__name__.replace("Mistral", "Llama")
    assert_same_model(again, theirs, logits)
    assert AutoTokenizer.from_pretrained(plain).encode("the cat") == run.tokenizer.encode("the cat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "run", "source"]


@pytest.mark.parametrize("name", OURS)
def test_our_own_class(name: str, tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", OURS[name])
    assert main(["export", str(tmp_path / "run" / "checkpoints" / "step_00000007"), str(tmp_path / "out")]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded) is AltUpMoEForCausalLM
    assert_same_model(loaded, model, logits)
    assert loaded.generation_config.eos_token_id == 0
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("the cat", return_tensors="pt")["input_ids"]
    assert loaded.generate(ids, max_new_tokens=2, do_sample=False).shape[1] > ids.shape[1]


def test_heads_that_do_not_divide_leave_as_mistral(tmp_path: Path) -> None:
    config = RunConfig(replace(MODEL, num_attention_heads=6, num_query_groups=3, kv_channels=10), AltUpConfig(width=1))
    model = write_run(tmp_path / "run", config)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--plain"]) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded).__name__ == "MistralForCausalLM"
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_half_precision(tmp_path: Path) -> None:
    """bf16 stays bf16 bit for bit; fp16 becomes fp32, which holds it; rounding happens when asked for."""
    for given, held in ((torch.bfloat16, "bf16"), (torch.float16, "fp32")):
        source, run_dir = tmp_path / f"source {given}", tmp_path / f"run {given}"
        theirs = save_model(source, "llama", dtype=given)
        assert main(["import", str(source), str(run_dir)]) == 0
        run = load_run(run_dir)
        assert run.config.train.precision == held
        values = run.model.state_dict()
        assert all(torch.equal(values[n].float(), value.float()) for n, value in theirs.state_dict().items())
    save_model(tmp_path / "source", "llama")
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "run"), "--precision", "bf16"]) == 0
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out)]) == 0
    assert {value.dtype for value in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("name", list(OURS)[:1])
def test_a_cache_that_is_lost_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both sides are our own class, and wrong alike."""
    write_run(tmp_path / "run", OURS[name])
    monkeypatch.setattr(gpt, "given_cache", lambda *caches: None)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 1
    assert "is answered" in capsys.readouterr().err


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_run(tmp_path / "run", OURS["altup 2"])
    real = hf_convert.write_weights
    monkeypatch.setattr(hf_convert, "write_weights", lambda *a: real(*a[:3], 30_000))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model, logits)


def test_a_failing_check_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "source", "llama")
    write_run(tmp_path / "run", OURS["plain"])
    real = hub.logits_of
    wrong = iter([0.0, 1.0] * 2)
    monkeypatch.setattr(hub, "logits_of", lambda *a: real(*a) + next(wrong))
    before = sorted(tmp_path.iterdir())
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "new")]) == 1
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 1
    assert "check failed: logits on" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "new"), "--no-check"]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a user's error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("altup-moe: error: ")
    assert error.count("\n") == 1
    return error


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "gpt2"}, "config.json model_type='gpt2'"),
    ("llama", {"attention_bias": True}, "config.json attention_bias=True"),
    ("llama", {"mlp_bias": True}, "config.json mlp_bias=True"),
    ("llama", {"hidden_act": "gelu"}, "config.json hidden_act='gelu'"),
    ("llama", {"quantization_config": {"bits": 4}}, "config.json quantization_config"),
    ("llama", {"auto_map": {"AutoModel": "x.Y"}}, "config.json auto_map"),
    ("llama", {"hidden_size": None}, "config.json hidden_size=None"),
    ("llama", {"num_hidden_layers": True}, "config.json num_hidden_layers=True"),
    ("llama", {"rms_norm_eps": "small"}, "config.json rms_norm_eps='small'"),
    ("llama", {"partial_rotary_factor": 0.5}, "config.json partial_rotary_factor=0.5"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1234.5}}, "config.json rope_theta=1234.5"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters.rope_type='yarn'"),
    ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.rope_type"),
    (
        "llama tied, stretched",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
        "rope_parameters.low_freq_factor=2.0",
    ),
    ("qwen3", {"layer_types": ["linear_attention"]}, "config.json layer_types='linear_attention'"),
    ("mixtral", {"num_experts_per_tok": 1}, "config.json num_experts_per_tok=1"),
    ("qwen3_moe", {"norm_topk_prob": False}, "config.json norm_topk_prob=False"),
    ("qwen3_moe top 1", {"norm_topk_prob": True}, "config.json norm_topk_prob=True"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "config.json mlp_only_layers=[1]"),
    ("qwen3_moe", {"decoder_sparse_step": 9}, "config.json decoder_sparse_step=9"),
    ("llama", {"vocab_size": 200}, "has ids up to"),
    ("llama", {"vocab_size": 301}, "model.embed_tokens.weight is [300, 32]"),
    ("llama", {"num_hidden_layers": 4}, "lacks the tensor model.layers.3."),
    ("llama", {"num_hidden_layers": 2}, "holds model.layers.2."),
    ("llama", {"tie_word_embeddings": True}, "holds lm_head.weight"),
    ("llama", {"num_key_value_heads": 3}, "model.num_query_groups=3"),
]


@pytest.mark.parametrize(("name", "fields", "says"), WRONG)
def test_what_cannot_be_imported(
    name: str, fields: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    save_model(source, name)
    content = json.loads((source / "config.json").read_text()) | fields
    (source / "config.json").write_text(json.dumps(content))
    assert says in refused(capsys, "import", source, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_windows_and_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    save_model(source, "mistral")
    error = refused(capsys, "import", source, tmp_path / "run", "--seq-length", 49)
    assert "--seq-length=49: 1 to 48 would fit (config.json sliding_window)" in error
    assert main(["import", str(source), str(tmp_path / "run"), "--seq-length", "20"]) == 0
    assert "model.seq_length 20 of 48 positions, limited by sliding_window 48" in capsys.readouterr().out
    assert "exists and is not empty" in refused(capsys, "import", source, tmp_path / "run")


def test_a_shorter_sample_does_not_shorten_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 positions in, samples of 20, 64 positions out, by either door; and the balance loss's weight is said."""
    source, run = tmp_path / "source", tmp_path / "run"
    save_model(source, "mixtral")
    assert main(["import", str(source), str(run), "--seq-length", "20"]) == 0
    assert "is router_aux_loss_coef 0.001 x top_k 2 / 3 MoE layers" in capsys.readouterr().out
    for kind in (["--plain"], []):
        out = tmp_path / f"out{len(kind)}"
        assert main(["export", str(run), str(out), *kind]) == 0
        content = json.loads((out / "config.json").read_text())
        assert content["max_position_embeddings"] == 64
    content = json.loads((tmp_path / "out1" / "config.json").read_text())
    assert content["router_aux_loss_coef"] == json.loads((source / "config.json").read_text())["router_aux_loss_coef"]


def test_older_configurations(tmp_path: Path) -> None:
    """RoPE as transformers 4 wrote it, an output layer saved though it is tied, RoPE's frequencies as a tensor."""
    source = tmp_path / "source"
    save_model(source, "llama tied, stretched")
    content = json.loads((source / "config.json").read_text())
    rope = content.pop("rope_parameters")
    content |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (source / "config.json").write_text(json.dumps(content))
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, source / "model.safetensors")
    assert main(["import", str(source), str(tmp_path / "run"), "--no-check"]) == 0
    run = load_run(tmp_path / "run")
    assert (run.config.model.rotary_base, run.config.model.rotary_scaling_factor) == (500000, 8.0)


def test_files_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    save_model(source, "llama")
    weights = source / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    assert "has neither model.safetensors nor" in refused(capsys, "import", source, run)
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "is a pickle, which is never loaded" in refused(capsys, "import", source, run)
    weights.write_bytes(kept[:-1])
    assert "is no safetensors file" in refused(capsys, "import", source, run)
    tensors = {name: value.to(torch.int64) for name, value in load_file_of(kept, tmp_path).items()}
    save_file(tensors, weights)
    assert "is of I64" in refused(capsys, "import", source, run)
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../model.safetensors"}}')
    assert "has no weight_map of bare" in refused(capsys, "import", source, run)
    (source / "config.json").write_text("{")
    assert "config.json: cannot be read" in refused(capsys, "import", source, run)
    shutil.rmtree(source)
    assert "config.json: is missing" in refused(capsys, "import", source, run)
    assert not run.exists()


def load_file_of(content: bytes, directory: Path) -> dict[str, Tensor]:
    path = directory / "kept.safetensors"
    path.write_bytes(content)
    return load_file(path)


NOT_PLAIN = [
    (OURS["altup 2"], "altup.width=2"),
    (RunConfig(MODEL, AltUpConfig(width=1), SIGMOID), "moe.score_function='sigmoid'"),
    (RunConfig(MODEL, AltUpConfig(width=1), MOE), "moe.shared_expert_size=16"),
    (RunConfig(MODEL, AltUpConfig(width=1), replace(MOE, shared_expert_size=0, partial=True)), "moe.partial=True"),
    (RunConfig(MODEL, AltUpConfig(width=1), replace(MOE, shared_expert_size=0)), "moe.layer_freq=2"),
    (RunConfig(MODEL, AltUpConfig(width=1), replace(MOE, shared_expert_size=0, layer_freq=1, top_k=1)), "moe.top_k=1"),
]


@pytest.mark.parametrize(("config", "says"), NOT_PLAIN)
def test_what_is_not_plain(config: RunConfig, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", config)
    assert says in refused(capsys, "export", tmp_path / "run", tmp_path / "out", "--plain")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_exports_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no config.yaml" in refused(capsys, "export", tmp_path, tmp_path / "out")
    write_run(tmp_path / "run", OURS["plain"])
    assert "exists and is not empty" in refused(capsys, "export", tmp_path / "run", tmp_path / "run")
    (file,) = (tmp_path / "run/checkpoints/step_00000007").glob("*.safetensors")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(bytes(damaged))
    assert "its bytes are not those that were saved" in refused(capsys, "export", tmp_path / "run", tmp_path / "out")


def test_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_run(tmp_path / "run", OURS["plain"])
    shutil.rmtree(tokenizer_dir(tmp_path / "run"))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "without a tokenizer" in capsys.readouterr().out
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), model, logits)
