"""Other programs' names of keys lead to ours, on the command line and in files, and never hide a key of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.config.errors import ConfigError
from altup_moe.config.keys import unknown_key
from altup_moe.config.load import HINTS, from_dict
from altup_moe.config.synonyms import SYNONYMS, joined, synonym

LEAVES = {joined(key.rpartition(".")[2]): key for key in HINTS}

MEANT = {
    "optim.lr": "optim.learning_rate",
    "lr": "optim.learning_rate",
    "training.lr": "optim.learning_rate",
    "learning_rate": "optim.learning_rate",
    "model.learning_rate": "optim.learning_rate",
    "batch_size": "train.global_batch_size",
    "num_heads": "model.num_attention_heads",
    "model.nHead": "model.num_attention_heads",
    "hidden": "model.hidden_size",
    "model.d_model": "model.hidden_size",
    "moe.hidden": "moe.ffn_hidden_size",
    "moe.intermediate_size": "moe.ffn_hidden_size",
    "intermediate_size": "model.ffn_hidden_size",
    "n_layer": "model.num_layers",
    "layers": "model.num_layers",
    "model.layers": "model.num_layers",
    "parallel.layers": "sequence.layers",
    "train.seq_len": "model.seq_length",
    "context_length": "model.seq_length",
    "tp": "parallel.tensor",
    "parallel.tp": "parallel.tensor",
    "pp": "parallel.pipeline",
    "ep": "parallel.expert",
    "cp": "parallel.context",
    "dp": "parallel.data",
    "warmup": "optim.warmup_steps",
    "wd": "optim.weight_decay",
    "weight_decay": "optim.weight_decay",
    "clip": "optim.clip_grad",
    "max_steps": "train.steps",
    "save_interval": "checkpoint.save_interval",
    "train.save_interval": "checkpoint.save_interval",
    "wandb": "log.wandb_project",
    "dtype": "train.precision",
    "bf16": "train.precision",
    "num_experts": "moe.num_experts",
    "topk": "moe.top_k",
    "capacity": "moe.capacity_factor",
    "K": "altup.width",
    "width": "altup.width",
    "model.width": "altup.width",
}
ADVISED = {
    "epochs": ("train.steps", "epochs * tokens of the data"),
    "grad_accum": ("train.global_batch_size", "train.micro_batch_size * data-parallel ranks"),
    "train.gradient-accumulation-steps": ("train.global_batch_size", "micro-batches of a step"),
    "world_size": ("parallel.data", "altup-moe launch torchrun --ranks-per-node N"),
    "fp16": ("train.precision", "bf16 or fp32"),
}


@pytest.mark.parametrize(("given", "meant"), MEANT.items())
def test_the_key_that_is_meant(given: str, meant: str) -> None:
    assert unknown_key(given, 3, HINTS).fits == f"unknown key; nearest is {meant}"


@pytest.mark.parametrize(("given", "meant", "advice"), [(name, *found) for name, found in ADVISED.items()])
def test_what_no_single_key_stands_for(given: str, meant: str, advice: str) -> None:
    fits = unknown_key(given, 3, HINTS).fits
    assert fits.startswith(f"unknown key; nearest is {meant} (")
    assert advice in fits


def test_every_key_that_is_named_exists() -> None:
    assert len(SYNONYMS) > 250
    assert {key for key, _ in SYNONYMS.values()} <= HINTS.keys()
    named = {word for _, advice in SYNONYMS.values() for word in advice.replace(";", " ").replace(",", " ").split()}
    dotted = {word.strip("()") for word in named if "." in word}
    assert dotted
    assert dotted <= HINTS.keys()


def test_no_synonym_stands_before_a_key_of_ours() -> None:
    """What has the name of a key here, in whatever spelling, leads to that key and no other."""
    of_the_model = "layers"  # without a section the model's are meant, not sequence.layers
    for name, (meant, _) in SYNONYMS.items():
        section, _, leaf = name.rpartition(".")
        assert f"{section}.{leaf}" not in {joined(key) for key in HINTS}
        if not section and leaf in LEAVES and leaf != of_the_model:
            assert meant == LEAVES[leaf], name
    for key in HINTS:
        leaf = key.rpartition(".")[2]
        found = synonym(leaf)
        assert leaf == of_the_model or found is None or found == (key, "")


def test_other_options_are_not_answered_with_keys_of_a_run() -> None:
    assert unknown_key("lr", 3, ["samples", "limit"]).fits == "unknown key; nearest is limit"
    assert unknown_key("dataset", "x", ["samples", "corpus"]).fits == "unknown key; nearest is corpus"


def test_on_the_command_line_and_in_a_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {steps: 1}\n")
    assert main(["train", str(file), "--optim.lr", "1e-3"]) == 2
    line = "altup-moe: error: optim.lr=0.001: unknown key; nearest is optim.learning_rate\n"
    assert capfd.readouterr().err == line
    assert main(["train", str(file), "--tp=2"]) == 2
    assert "tp=2: unknown key; nearest is parallel.tensor\n" in capfd.readouterr().err
    for content in ({"optim": {"lr": 1e-3}}, {"optimizer": {"lr": 1e-3}}, {"lr": 1e-3}):
        with pytest.raises(ConfigError, match=r"unknown key; nearest is optim\.learning_rate"):
            from_dict(content)
