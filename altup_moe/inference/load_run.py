"""A run directory read back on one process: configuration, newest checkpoint as the reference model, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from altup_moe.checkpoint.hf.convert import START
from altup_moe.checkpoint.hf.files import GENERATION, read_json_object
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.checkpoint.tensors import load_weights
from altup_moe.config import DataError, RunConfig, UserError
from altup_moe.config.load import load_config
from altup_moe.config.run_directory import config_file, tokenizer_dir
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from altup_moe.model.reference.build import ReferenceModel, reference_model
from altup_moe.train.sample_order import with_sample_order


@dataclass(frozen=True)
class FinishedRun:
    """What evaluation and generation need. The model is in evaluation mode, on a GPU if there is one."""

    config: RunConfig
    model: ReferenceModel
    tokenizer: Tokenizer
    step: int


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
        raise UserError(f"{run_dir}: has no checkpoint yet")
    tokenizer = load_tokenizer(tokenizer_dir(run_dir))
    special = {"bos_token_id": tokenizer.eod, "eos_token_id": tokenizer.eod, "pad_token_id": tokenizer.pad_id}
    if config.model.encoder_decoder:
        special |= _start(tokenizer_dir(run_dir))
    model = reference_model(config, **special)
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        step = checkpoint.manifest.step
        config = with_sample_order(config, checkpoint.manifest)
        try:
            model.load_state_dict(load_weights(checkpoint), strict=True)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise DataError(directory, f"is not of the model in config.yaml: {' '.join(lines[1:3])}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return FinishedRun(config, model.to(device).eval(), tokenizer, step)


def _start(tokenizer: Path) -> dict[str, int]:
    """The id that an imported encoder-decoder's answers begin with; nothing of one that was trained here."""
    held = read_json_object(tokenizer / GENERATION) if (tokenizer / GENERATION).is_file() else {}
    return {START: held[START]} if isinstance(held.get(START), int) else {}
