"""A finished run of a tiny model with random weights, in memory and as the directory that training would leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import torch

from altup_moe.config import AltUpConfig, LogConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.load import save_config
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.load_run import FinishedRun, tokenizer_dir
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from tests.checkpoints import head, write_tensors

TEXT = "the cat sat on the mat, the dog lay on the log, and the bird flew over the house.\n" * 4


def tiny(**sections: dict[str, Any]) -> RunConfig:
    """Two layers, two blocks, one layer of experts; keyword arguments replace fields of sections."""
    model = ModelConfig(
        num_layers=2,
        hidden_size=16,
        ffn_hidden_size=24,
        num_attention_heads=2,
        num_query_groups=1,
        seq_length=24,
        vocab_size=300,
        init_method_std=0.5,
    )
    base = RunConfig(
        model,
        AltUpConfig(width=2),
        MoEConfig(num_experts=4, layer_freq=2, ffn_hidden_size=12, capacity_factor=1.0),
        train=TrainConfig(micro_batch_size=2, steps=3, global_batch_size=4),
    )
    return replace(base, **{name: replace(getattr(base, name), **fields) for name, fields in sections.items()})


def random_model(config: RunConfig, tokenizer: Tokenizer, seed: int = 0) -> AltUpMoEForCausalLM:
    """The reference model in evaluation mode; its coefficients are off their initial values."""
    torch.manual_seed(seed)
    special = {"bos_token_id": tokenizer.eod, "eos_token_id": tokenizer.eod, "pad_token_id": tokenizer.eod}
    model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(config, **special)).eval()
    for name, parameter in model.named_parameters():
        if ".altup." in name:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return model


def finished(config: RunConfig, tokenizer: Tokenizer, seed: int = 0) -> FinishedRun:
    """The run in memory."""
    return FinishedRun(config, random_model(config, tokenizer, seed), tokenizer, 3)


def write_run(run_dir: Path, config: RunConfig, tokenizer: Tokenizer, seed: int = 0) -> FinishedRun:
    """The run as a directory, its model saved by one rank under step 3; returns what is in it."""
    config = replace(config, log=LogConfig(run_dir=str(run_dir)))
    run = finished(config, tokenizer, seed)
    run_dir.mkdir(parents=True)
    save_config(config, run_dir / "config.yaml")
    copytree(tokenizer.directory, tokenizer_dir(run_dir))
    weights = {f"weights/{name}": value for name, value in run.model.state_dict().items()}
    write_tensors(run_dir, head(config, 3), weights)
    return run
