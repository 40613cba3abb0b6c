"""Convert weights between Hugging Face directories and checkpoints, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from altup_moe.checkpoint.hf.files import HubWeights, write_weights
from altup_moe.checkpoint.hf.names import hub_name
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import TORCH_DTYPES, items
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parameter_names import global_shapes

START = "decoder_start_token_id"
"""Key of the token that an encoder-decoder's outputs begin with; without it, the padding token is used."""
STORED_AS = {"fp32": "F32", "bf16": "BF16"}
"""`train.precision` -> dtype of stored weights."""
SHARD_BYTES = 5_000_000_000
"""Largest file of an export in bytes, as is usual on the hub."""


def exact_precision(weights: HubWeights, names: dict[str, str]) -> Literal["fp32", "bf16"]:
    """The `train.precision` that represents all weights exactly: bf16 if all tensors are bf16, else fp32."""
    return "bf16" if all(weights.entry(name).dtype == "BF16" for name in names.values()) else "fp32"


def import_weights(
    weights: HubWeights,
    names: dict[str, str],
    config: RunConfig,
    root: Path,
    libraries: dict[str, str],
    tokenizer_sha256: str = "",
) -> Path:
    """Write Hugging Face weights as checkpoint 0 of a run. A failure leaves no files.

    Args:
        names: global name -> name in the files (`HubWeights.match`).
        root: directory of the run's checkpoints. libraries: versions, for the manifest.
        tokenizer_sha256: of the run's tokenizer.
    Returns:
        The checkpoint's directory.
    """
    dtype = STORED_AS[config.train.precision]
    specs = {f"weights/{name}": TensorSpec(shape, dtype) for name, shape in global_shapes(config).items()}

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        tensor = weights.read(names[name.removeprefix("weights/")], tensor_slice)
        return items(tensor.to(TORCH_DTYPES[dtype]).contiguous())

    head = Manifest(
        step=0,
        consumed_samples=0,
        skipped_steps=0,
        optimizer_steps=0,
        scheduler_steps=0,
        world_size=1,
        data_fingerprint="",
        config=config.to_dict(),
        libraries=libraries,
        tokenizer_sha256=tokenizer_sha256,
    )
    return write_checkpoint(root, head, specs, single_process_plan(specs), read)


def export_weights(checkpoint: Checkpoint, directory: Path, family: str | None, limit: int = SHARD_BYTES) -> None:
    """Write a checkpoint's weights as safetensors, bit for bit.

    Args:
        family: family that gives the tensors' names; None keeps the global names, which our own class uses.
        limit: largest file in bytes.
    """
    stored = checkpoint.manifest.of_kind("weights")
    theirs = {name: name if family is None else hub_name(name, family) for name in stored}
    ours = {hub: name for name, hub in theirs.items()}
    specs = {theirs[name]: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    write_weights(directory, specs, lambda name: checkpoint.read(f"weights/{ours[name]}"), limit)


def torch_dtype(config: RunConfig) -> str:
    """torch's name of the weights' dtype, for a `config.json`."""
    return {"fp32": "float32", "bf16": "bfloat16"}[config.train.precision]


def special_tokens(
    generation: Mapping[str, Any], eod: int, pad: int | None = None, start: int | None = None
) -> dict[str, Any]:
    """Ids of special tokens: from a `generation_config.json`, or the tokenizer's where it has none.

    Args:
        eod: id that ends a document; a decoder's text begins behind one as well.
        pad: id of padding; None is `eod`.
        start: id that an encoder-decoder's outputs begin with; None for a decoder alone.
    """
    usual = {"bos_token_id": eod, "eos_token_id": eod, "pad_token_id": eod if pad is None else pad}
    if start is not None:
        usual |= {"bos_token_id": start, START: start}
    return {name: value if generation.get(name) is None else generation[name] for name, value in usual.items()}
