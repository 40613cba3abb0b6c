"""The encoder-decoder through the door, and what is done with its run: evaluation and generation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

import altup_moe.inference.hub as hub
from altup_moe.checkpoint.hf.config import from_hub
from altup_moe.checkpoint.hf.plain import plain_family
from altup_moe.cli import main as altup_moe
from altup_moe.config import (
    AltUpConfig,
    ConfigError,
    LogConfig,
    ModelConfig,
    MoEConfig,
    RunConfig,
    SequenceConfig,
    UserError,
)
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tokenizer import train_bpe
from altup_moe.inference.evaluate import evaluate_samples
from altup_moe.inference.generate import continuation, generate_command
from altup_moe.inference.load_run import load_run, tokenizer_dir
from altup_moe.model.reference.build import reference_model
from altup_moe.model.reference.t5 import AltUpMoEForConditionalGeneration
from tests.checkpoints import head, write_tensors
from tests.command import command
from tests.models import assert_same_model
from tests.unit.commands.hub_models import TEXT

reshard = command("reshard")

grow = command("grow")

main = command("convert")

MODEL = ModelConfig(
    num_layers=3, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=4, seq_length=24,
    vocab_size=300, arch="t5", num_decoder_layers=2, decoder_seq_length=10, share_embeddings_and_output_weights=False,
)  # fmt: skip
OURS = {
    "plain, tied": RunConfig(replace(MODEL, share_embeddings_and_output_weights=True), AltUpConfig(width=1)),
    "wide": RunConfig(
        MODEL,
        AltUpConfig(width=4, recycled=False, cross_attention="wide"),
        MoEConfig(num_experts=4, layer_freq=2, ffn_hidden_size=24, capacity_factor=1.0),
    ),
    "strided": RunConfig(
        replace(MODEL, decoder_seq_length=12), AltUpConfig(width=1), sequence=SequenceConfig(4, decoder_layers="0..0")
    ),
}


def write_run(run_dir: Path, config: RunConfig, sentinels: int = 0) -> AltUpMoEForConditionalGeneration:
    """A run's directory with random weights at step 3; returns the model."""
    torch.manual_seed(0)
    config = replace(config, log=LogConfig(run_dir=str(run_dir)))
    model = reference_model(config).eval()
    for name, tensor in model.state_dict().items():
        if ".altup." in name or "norm" in name or "bias" in name:
            tensor.add_(0.3 * torch.randn_like(tensor))
    run_dir.mkdir()
    save_config(config, run_dir / "config.yaml")
    train_bpe([TEXT], 290, tokenizer_dir(run_dir), sentinels)
    write_tensors(run_dir, head(config, 3), {f"weights/{n}": value for n, value in model.state_dict().items()})
    assert isinstance(model, AltUpMoEForConditionalGeneration)
    return model


class Random:
    """Random samples of all lengths."""

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(n)
        ids = torch.randint(0, 300, (24 + 11,), generator=generator)
        return {
            "encoder_tokens": ids[:24],
            "encoder_mask": (torch.arange(24) < 10 + n).float(),
            "tokens": ids[24:-1],
            "labels": ids[25:],
            "loss_mask": (torch.arange(10) < 5 + n % 5).float(),
        }


@pytest.mark.parametrize("name", OURS)
def test_our_own_class(name: str, tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", OURS[name])
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded) is AltUpMoEForConditionalGeneration
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("the cat", return_tensors="pt")["input_ids"]
    labels = torch.arange(5, 12)[None]
    assert_same_model(loaded, model, lambda of: model_logits(of, ids, labels))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, labels=labels).logits, model_logits(model, ids, labels))
    assert loaded.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > 1


@pytest.mark.parametrize("tied", [False, True])
def test_t5_in_and_out_again(tied: bool, tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=300, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=tied, decoder_start_token_id=5, pad_token_id=5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = T5ForConditionalGeneration(config).eval()
    if not tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(300, 32) / 6)
    theirs.save_pretrained(tmp_path / "source")
    train_bpe([TEXT], 290, tmp_path / "source")
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "run"), "--seq-length", "24"]) == 0
    run = load_run(tmp_path / "run")
    assert run.config.model.share_embeddings_and_output_weights == tied
    ids = torch.tensor([run.tokenizer.encode("the cat sat")])
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": run.tokenizer.eod}
    # Their cache has as many layers as the encoder.
    expected = theirs.generate(ids, **greedy, use_cache=False)
    assert continuation(run, "the cat sat", 6, 0.0, 1.0, 0) == run.tokenizer.decode(expected[0, 1:].tolist())
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "plain"), "--plain"]) == 0
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain")
    assert type(again) is T5ForConditionalGeneration
    assert_same_model(again, theirs, lambda of: of(ids, labels=ids).logits)
    assert again.config.decoder_start_token_id == 5


SPECIAL = {"pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}


@pytest.mark.parametrize("kind", [["--plain"], []])
def test_an_export_names_padding_and_the_first_token(kind: list[str], tmp_path: Path) -> None:
    """Padding begins what the decoder writes, as in training; the end token ends what the encoder reads."""
    write_run(tmp_path / "run", OURS["plain, tied"], sentinels=10)
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), str(out), *kind]) == 0
    for file in ("config.json", "generation_config.json"):
        content = json.loads((out / file).read_text())
        assert {key: content[key] for key in SPECIAL} == SPECIAL
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    assert tokenizer("the cat")["input_ids"][-1] == 1
    labels = torch.tensor([[5, 6, 1]])
    moved = AutoModelForSeq2SeqLM.from_pretrained(out).prepare_decoder_input_ids_from_labels(labels)
    assert moved.tolist() == [[0, 5, 6]]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("decoder_start_token_id", 1, "is answered"),
        ("eos_token_id", 77, "a text ends at [77]"),
        ("template", (), "the prompt"),
    ],
)
def test_the_check_asks_as_a_user_would(
    key: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that lead transformers astray are not written, though the weights are right."""
    write_run(tmp_path / "run", OURS["plain, tied"], sentinels=10)
    real = hub.export_tokenizer

    def astray(directory: Path, out: Path, config: RunConfig) -> tuple[dict[str, Any], list[str]]:
        special, lines = real(directory, out, config)
        if key == "template":
            (out / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
        else:
            special[key] = value
            (out / "generation_config.json").write_text(json.dumps(special))
        return special, lines

    monkeypatch.setattr(hub, "export_tokenizer", astray)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--plain"]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_import_that_was_tuned_leaves_with_what_it_brought(tmp_path: Path) -> None:
    """Training copies a tokenizer twice; the ids of generation go with it."""
    config = T5Config(
        vocab_size=300, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=True, decoder_start_token_id=0, pad_token_id=0, eos_token_id=[1, 9],
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "source")
    train_bpe([TEXT], 290, tmp_path / "source", 10)
    assert main(["import", str(tmp_path / "source"), str(tmp_path / "run"), "--seq-length", "24"]) == 0
    imported, tuned = tmp_path / "run", tmp_path / "tuned"
    prepare_tokens([Document(str(n), TEXT) for n in range(9)], load_run(imported).tokenizer, tmp_path / "d", "mine")
    words = ["--data.corpus", str(tmp_path / "d"), "--train.steps", "1", "--log.run_dir", str(tuned)]
    words += ["--checkpoint.initial_load_path", str(imported), "--train.global_batch_size", "2"]
    assert altup_moe(["train", str(imported / "config.yaml"), *words]) == 0
    assert main(["export", str(tuned), str(tmp_path / "out"), "--plain"]) == 0
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: content[key] for key in SPECIAL} == {**SPECIAL, "eos_token_id": [1, 9]}
    assert load_run(tuned).model.generation_config.eos_token_id == [1, 9]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj='relu'"),
        ({"d_kv": 0}, "d_kv=0"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings=None"),
        ({"quantization_config": {}}, "quantization_config"),
    ],
)
def test_what_of_t5_is_refused(fields: dict[str, Any], key: str) -> None:
    content = {
        "model_type": "t5", "vocab_size": 300, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }  # fmt: skip
    assert from_hub(content).model.seq_length == 512
    with pytest.raises(ConfigError, match=key):
        from_hub({**content, **fields})


def test_wide_and_sparse_ones_are_no_plain_t5() -> None:
    assert plain_family(OURS["plain, tied"]) == "t5"
    with pytest.raises(ConfigError, match="no plain model"):
        plain_family(OURS["wide"])
    with pytest.raises(ConfigError, match=r"sequence\.stride=4: no plain model strides"):
        plain_family(OURS["strided"])
    with pytest.raises(ConfigError, match="T5 is dense"):
        plain_family(replace(OURS["wide"], altup=AltUpConfig(width=1)))


def model_logits(model: AltUpMoEForConditionalGeneration, ids: Tensor, labels: Tensor) -> Tensor:
    """Logits behind the start token, which the exported tokenizer's end token is."""
    return model(ids, decoder_input_ids=F.pad(labels, (1, 0))[:, :-1]).logits


def test_evaluation_equals_the_sums_done_by_hand(tmp_path: Path) -> None:
    write_run(tmp_path / "run", OURS["wide"])
    run, lengths = load_run(tmp_path / "run"), torch.arange(300) % 7
    nats, tokens, text_bytes = 0.0, 0.0, 0.0
    for n in range(5):
        row = {name: value[None] for name, value in Random()[n].items()}
        with torch.no_grad():
            logits = run.model(row["encoder_tokens"], row["encoder_mask"], row["tokens"]).logits
        losses = F.cross_entropy(logits[0].double(), row["labels"][0], reduction="none")
        nats += float((losses * row["loss_mask"][0]).sum())
        tokens += float(row["loss_mask"].sum())
        text_bytes += float((lengths[row["labels"]] * row["loss_mask"]).sum())
    got = evaluate_samples(run, Random(), 5, lengths)
    assert got.tokens == tokens
    assert got.loss == pytest.approx(nats / tokens, rel=1e-6)
    assert got.bits_per_byte == pytest.approx(nats / text_bytes / 0.6931471805599453, rel=1e-6)


def test_the_answer_to_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", OURS["wide"])
    run = load_run(tmp_path / "run")
    # As in training: the end token behind what the encoder reads, and padding (here the same) first of what is written.
    prompt, ids = torch.tensor([[*run.tokenizer.encode("the cat"), run.tokenizer.eod]]), [run.tokenizer.eod]
    with torch.no_grad():
        while len(ids) < 6 and (len(ids) == 1 or ids[-1] != run.tokenizer.eod):
            logits = run.model(prompt, decoder_input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
    answer = continuation(run, "the cat", 5, 0.0, 1.0, 0)
    assert answer == run.tokenizer.decode(ids[1:])
    assert generate_command(tmp_path / "run", "the cat", 5, 0.0, 1.0, 0) == 0
    assert capsys.readouterr().out == f"the cat\n{answer}\n"
    # As many tokens as the decoder was trained on, and no more; the prompt may fill the encoder.
    assert continuation(run, "the cat", 999, 0.0, 1.0, 0) == continuation(run, "the cat", 10, 0.0, 1.0, 0)
    with pytest.raises(UserError, match="was trained on 24"):
        continuation(run, "x y z " * 24, 5, 0.0, 1.0, 0)


def test_resharding_keeps_every_tensor(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run", OURS["wide"])
    arguments = [str(tmp_path / "run"), str(tmp_path / "out"), "--tensor", "2", "--expert", "2", "--verify"]
    assert reshard(arguments) == 0
    held = load_run(tmp_path / "out").model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in model.state_dict().items())


def test_growth_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", OURS["plain, tied"])
    assert checkpoints_dir(tmp_path / "run").is_dir()
    assert grow([str(tmp_path / "run"), str(tmp_path / "out"), "--altup.width", "2"]) == 2
    assert "model.arch='t5'" in capsys.readouterr().err
