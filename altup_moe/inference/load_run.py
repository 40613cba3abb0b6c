"""A run directory read back on one process: configuration, newest checkpoint as the reference model, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from altup_moe.checkpoint.hf.convert import special_tokens
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.checkpoint.tensors import load_weights
from altup_moe.config import DataError, RunConfig, UserError
from altup_moe.config.load import load_config
from altup_moe.config.run_directory import GENERATION, config_file, tokenizer_dir
from altup_moe.data.special_tokens import PromptFormat, prompt_format
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from altup_moe.model.reference.build import ReferenceModel, reference_model
from altup_moe.train.sample_order import with_sample_order

_RULES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (float, int)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (int,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"), (list,)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), (int, list)),
}
"""Keys of generation_config.json that decide which token is likeliest, with their types. How to draw from the likely
ones is the user's."""


@dataclass(frozen=True)
class FinishedRun:
    """What evaluation and generation need. The model is in evaluation mode, on a GPU if there is one."""

    config: RunConfig
    model: ReferenceModel
    tokenizer: Tokenizer
    step: int

    @property
    def prompt_format(self) -> PromptFormat:
        """How its prompts are built."""
        return prompt_format(self.config.model, self.config.data, self.tokenizer)

    @property
    def end_ids(self) -> list[int]:
        """Ids at which a text that it generates ends."""
        ends = special_ids(self.config, self.tokenizer)["eos_token_id"]
        return ends if isinstance(ends, list) else [ends]


def load_run(run_dir: Path) -> FinishedRun:
    """Read a run directory, whatever layout wrote it.

    Raises:
        UserError: it has no checkpoint. DataError: one that is damaged, or of another model.
    """
    config = load_config(config_file(run_dir))
    # The directory may have been moved since it was written.
    config = replace(config, log=replace(config.log, run_dir=str(run_dir)))
    directory = latest_checkpoint(run_dir)
    if directory is None:
        raise UserError(f"{run_dir}: has no checkpoint yet; type altup-moe train {config_file(run_dir)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_checkpoint(directory, config, tokenizer_dir(run_dir), device)


def load_checkpoint(directory: Path, config: RunConfig, tokenizer_directory: Path, device: torch.device) -> FinishedRun:
    """Read one checkpoint and the tokenizer of its run. Raises DataError as `load_run` does."""
    tokenizer = load_tokenizer(tokenizer_directory, config.data.add_special_tokens)
    model = generating_model(config, tokenizer, tokenizer_directory)
    with Checkpoint(directory) as checkpoint:
        check_tokenizer(checkpoint, tokenizer, tokenizer_directory)
        checkpoint.verify()
        step = checkpoint.manifest.step
        config = with_sample_order(config, checkpoint.manifest)
        try:
            model.load_state_dict(load_weights(checkpoint), strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise DataError(directory, f"is not of the model in config.yaml: {' '.join(lines[1:3])}") from error
    return FinishedRun(config, model.to(device).eval(), tokenizer, step)


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer, directory: Path) -> None:
    """Raise DataError if a tokenizer's directory holds another one than the checkpoint was trained with."""
    known = checkpoint.manifest.tokenizer_sha256
    if known not in ("", tokenizer.sha256):
        problem = f"is not the tokenizer of {checkpoint.directory}: sha256 {tokenizer.sha256[:12]}, not {known[:12]}"
        raise DataError(directory / "tokenizer.json", problem)


def generating_model(config: RunConfig, tokenizer: Tokenizer, tokenizer_directory: Path) -> ReferenceModel:
    """The reference model of a run with random weights, which ends texts and chooses tokens by the tokenizer's rules.

    Raises:
        DataError: generation_config.json has a value of another type than transformers writes.
    """
    model = reference_model(config, **special_ids(config, tokenizer))
    _set_rules(model, tokenizer.generation, tokenizer_directory)
    return model


def special_ids(config: RunConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids of a run's special tokens by transformers' names, an encoder-decoder's first token among them."""
    start = tokenizer.start_id if config.model.encoder_decoder else None
    return special_tokens(tokenizer.generation, tokenizer.eod, tokenizer.pad_id, start)


def _set_rules(model: ReferenceModel, generation: Mapping[str, Any], tokenizer: Path) -> None:
    """Generate by the rules that an imported model came with."""
    given = {name: generation[name] for name in _RULES if generation.get(name) is not None}
    for name, value in given.items():
        if type(value) not in _RULES[name]:
            raise DataError(tokenizer / GENERATION, f"{name} is {value!r}, of another type than transformers writes")
    model.generation_config.update(**given)
