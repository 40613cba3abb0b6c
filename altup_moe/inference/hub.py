"""Whole conversions: a Hugging Face directory to a run directory, a run to a Hugging Face directory, and the proof.

What is written appears whole or not at all: it is made and checked beside its place, then renamed there.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from altup_moe.checkpoint.hf.balance import balance_lines
from altup_moe.checkpoint.hf.config import from_hub
from altup_moe.checkpoint.hf.convert import (
    START,
    STORED_AS,
    exact_precision,
    export_weights,
    import_weights,
    torch_dtype,
)
from altup_moe.checkpoint.hf.files import HubWeights, read_json_object
from altup_moe.checkpoint.hf.plain import plain_config, plain_family
from altup_moe.checkpoint.library_versions import library_versions
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.checkpoint.tensors import TORCH_DTYPES
from altup_moe.config import AltUpConfig, DataConfig, LogConfig, OptimConfig, RunConfig, TrainConfig
from altup_moe.config.checks import check_config
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import GENERATION, checkpoints_dir, config_file, tokenizer_dir
from altup_moe.data.files import new_directory
from altup_moe.data.tokenizer import load_tokenizer, save_tokenizer
from altup_moe.inference.hub_answers import CheckFailed, compare_answers
from altup_moe.inference.hub_tokenizer import export_tokenizer, imported_tokenizer, write_json
from altup_moe.inference.load_run import check_tokenizer, load_checkpoint
from altup_moe.inference.logits import logits_of, model_of
from altup_moe.model.reference.build import class_of, reference_config
from altup_moe.parallel.parameter_names import global_shapes

TOLERANCE = 1e-4
"""Largest difference of logits that passes, as a share of the largest logit (fp32, other order of summation)."""


def import_run(
    source: Path, run_dir: Path, seq_length: int | None, precision: Literal["fp32", "bf16"] | None, check: bool
) -> list[str]:
    """Make a run directory with a checkpoint 0 from a local Hugging Face directory.

    Returns:
        What was done, in lines.
    Raises:
        ConfigError: something of the model that ours has not. DataError: its files. CheckFailed: logits differ.
    """
    content = read_json_object(source / "config.json")
    hub = from_hub(content, seq_length)
    tokenizer, said = imported_tokenizer(source, hub.model.vocab_size)
    config = RunConfig(
        model=hub.model,
        altup=AltUpConfig(width=1),
        moe=hub.moe,
        data=DataConfig(tokenizer=str(tokenizer_dir(run_dir)), add_special_tokens=True),
        # A trained model is not started again at a fresh model's rate.
        optim=OptimConfig(learning_rate=2e-5, min_learning_rate=2e-6),
        train=TrainConfig(micro_batch_size=1),
        log=LogConfig(run_dir=str(run_dir)),
    )
    check_config(replace(config, data=DataConfig()), 1)  # its tokenizer is not there yet
    with HubWeights(source) as weights, new_directory(run_dir) as staged:
        names = weights.match(global_shapes(config), hub.family, hub.model.share_embeddings_and_output_weights)
        exact = exact_precision(weights, names)
        config = replace(config, train=replace(config.train, precision=precision or exact))
        directory = import_weights(
            weights, names, config, checkpoints_dir(staged), library_versions(), tokenizer.sha256
        )
        save_tokenizer(tokenizer, tokenizer_dir(staged))
        write_json(tokenizer_dir(staged) / GENERATION, _generation(source, content))
        save_config(config, config_file(staged))
        limit = f", limited by sliding_window {hub.window}" if hub.window == hub.positions else ""
        lines = [
            f"{run_dir}: {hub.family}, {_count(global_shapes(config))} parameters, {config.train.precision}",
            f"model.seq_length {config.model.seq_length} of {hub.positions} positions{limit}",
            *said,
            *balance_lines(config),
        ]
        if check:
            dtype = TORCH_DTYPES[STORED_AS[config.train.precision]]
            theirs = logits_of(lambda: _rounded(_load_hub(source), dtype), config.model)
            lines.append(_compare(theirs, logits_of(lambda: model_of(directory), config.model)))
            loaded = partial(load_checkpoint, directory, config, tokenizer_dir(staged), torch.device("cpu"))
            lines.append(compare_answers(loaded, source, lambda: _rounded(_load_hub(source), dtype)))
    return lines


def export_run(source: Path, out: Path, plain: bool, check: bool) -> list[str]:
    """Make a Hugging Face directory from a run's latest checkpoint, or a checkpoint.

    Args:
        plain: for a class of transformers instead of our own.
    Returns:
        What was done, in lines.
    Raises:
        ConfigError: `plain`, and no such class computes the same. UserError: no checkpoint. CheckFailed: logits differ.
    """
    directory = find_checkpoint(source)
    with Checkpoint(directory) as checkpoint, new_directory(out) as staged:
        config = checkpoint.config
        family = plain_family(config) if plain else None
        checkpoint.verify()
        tokenizer = tokenizer_dir(directory.parents[1])
        if tokenizer.is_dir():
            check_tokenizer(checkpoint, load_tokenizer(tokenizer), tokenizer)
        special, lines = export_tokenizer(tokenizer, staged, config)
        if plain:
            content = plain_config(config, torch_dtype(config), special)
            write_json(staged / "config.json", content)
            lines += balance_lines(config)
        else:
            ours = reference_config(config, **special)
            ours.architectures, ours.dtype = [class_of(config).__name__], torch_dtype(config)
            ours.save_pretrained(staged)
        export_weights(checkpoint, staged, family)
        kind = family or class_of(config).config_class.model_type
        lines.insert(0, f"{out}: {kind}, {_count(global_shapes(config))} parameters, from {directory}")
        if check:
            expected = logits_of(lambda: model_of(directory), config.model)
            lines.append(_compare(expected, logits_of(lambda: _load_hub(staged), config.model)))
            if tokenizer.is_dir():
                loaded = partial(load_checkpoint, directory, config, tokenizer, torch.device("cpu"))
                lines.append(compare_answers(loaded, staged, lambda: _load_hub(staged)))
    return lines


def _compare(expected: Tensor, got: Tensor) -> str:
    difference, scale = float((got - expected).abs().max()), float(expected.abs().max())
    line = f"logits on {expected.shape[0]} x {expected.shape[1]} random tokens differ by at most {difference:.2e}"
    line += f" (largest logit {scale:.3g})"
    if not difference <= TOLERANCE * max(scale, 1.0):  # not: NaN fails as well
        raise CheckFailed(line)
    return line


def _load_hub(directory: Path) -> Any:
    seq2seq = read_json_object(directory / "config.json").get("is_encoder_decoder") is True
    model, info = (AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM).from_pretrained(
        directory,
        dtype=torch.float32,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    wrong = {kind: sorted(map(str, names))[:3] for kind, names in info.items() if names}
    if wrong:
        raise CheckFailed(f"transformers loads {directory} with {wrong}")
    return model


@torch.no_grad()
def _rounded(model: Any, dtype: torch.dtype) -> Any:
    """The model with its weights rounded to a type; nothing else of it is (RoPE's frequencies are buffers)."""
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype))
    return model


def _generation(source: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Settings of generation, with the special tokens that only config.json has."""
    held = read_json_object(source / GENERATION) if (source / GENERATION).is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id", START)
    return {name: content[name] for name in names if content.get(name) is not None} | held


def _count(shapes: dict[str, tuple[int, ...]]) -> str:
    return f"{sum(torch.Size(shape).numel() for shape in shapes.values()):,}"
