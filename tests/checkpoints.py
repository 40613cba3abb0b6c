"""Checkpoints of given tensors, as one process would write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import DTYPE_NAMES, items
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config import RunConfig
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.parameter_names import global_shapes, is_buffer


def head(config: RunConfig, step: int, **fields: object) -> Manifest:
    """A manifest without tensors, of a run's step."""
    samples, skipped = config.train.global_batch_size * step, min(1, step)
    known = {"consumed_samples": samples, "skipped_steps": skipped, "optimizer_steps": step - skipped}
    known |= {"scheduler_steps": step}
    known |= {"world_size": 1, "data_fingerprint": "f00d", "config": config.to_dict()}
    return Manifest(step=step, **{**known, **fields})


def write_tensors(run_dir: str | Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> Path:
    """A checkpoint of tensors by stored name (KIND/NAME). Returns its directory."""
    specs = {name: TensorSpec(tuple(t.shape), DTYPE_NAMES[t.dtype]) for name, t in tensors.items()}

    def read(name: str, tensor_slice: tuple[tuple[int, int], ...]) -> np.ndarray:
        return items(tensors[name])[tuple(slice(a, b) for a, b in tensor_slice)]

    return write_checkpoint(checkpoints_dir(run_dir), manifest, specs, single_process_plan(specs), read)


def random_tensors(config: RunConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights of `dtype` (coefficients and buffers fp32), both moments, and fp32 copies where weights are halves."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in global_shapes(config).items():
        full = ".altup." in name or is_buffer(name)
        value = torch.randn(shape, generator=generator)
        tensors[f"weights/{name}"] = value if full else value.to(dtype)
        if is_buffer(name):
            continue
        for kind in ("exp_avg", "exp_avg_sq"):
            tensors[f"{kind}/{name}"] = torch.rand(shape, generator=generator)
        if tensors[f"weights/{name}"].dtype != torch.float32:
            tensors[f"main/{name}"] = value
    return tensors


def stored_bytes(directory: Path) -> dict[str, bytes]:
    """Every global tensor's items (what belongs to one layout, random streams, left out)."""
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify()
        names = [name for name in checkpoint.manifest.tensors if not name.startswith("rng/")]
        return {name: checkpoint.read(name).tobytes() for name in names}
