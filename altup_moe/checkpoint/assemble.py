"""A whole model from the ranks' parts: global name -> tensor, for the reference model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from altup_moe.checkpoint.store import read_json, read_manifest
from altup_moe.config import DataError


def assemble(directory: Path) -> dict[str, Tensor]:
    """Every global parameter and buffer of a checkpoint, whatever layout wrote it.

    Raises:
        DataError: a rank's file is missing or damaged, or the ranks together leave a hole.
    """
    whole: dict[str, Tensor] = {}
    covered: dict[str, int] = {}
    seen: set[tuple[str, str]] = set()
    for rank in range(read_manifest(directory).world_size):
        file = directory / f"rank_{rank:05d}.safetensors"
        meta = read_json(file.with_suffix(".json"))
        try:
            pieces = meta["pieces"]
            with safe_open(str(file), framework="pt") as tensors:
                for key, held in pieces.items():
                    new = [piece for piece in held if (piece["name"], str(piece["box"])) not in seen]
                    if new:
                        _place(tensors.get_tensor(key), new, whole, covered)
                        seen.update((piece["name"], str(piece["box"])) for piece in new)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(file, f"cannot be read, or is not what its .json says ({error})") from error
    for name, tensor in whole.items():
        if covered[name] != tensor.numel():
            raise DataError(directory, f"{name}: the ranks' files hold {covered[name]} of {tensor.numel()} elements")
    return whole


def _place(local: Tensor, held: list[dict], whole: dict[str, Tensor], covered: dict[str, int]) -> None:
    for piece in held:
        name = piece["name"]
        if name not in whole:
            whole[name], covered[name] = torch.empty(piece["shape"], dtype=local.dtype), 0
        part = local[tuple(slice(a, b) for a, b in piece["local"])]
        whole[name][tuple(slice(a, b) for a, b in piece["box"])] = part
        covered[name] += part.numel()
