"""Load a checkpoint of any layout into this rank's tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import LocalTensor
from altup_moe.checkpoint.tensors import items, load_tensor
from altup_moe.config import ConfigError


@torch.no_grad()
def restore(checkpoint: Checkpoint, held: Iterable[LocalTensor]) -> None:
    """Copy every slice in `held` from the checkpoint into the rank's tensors; on a CPU without an intermediate copy.

    Raises:
        ConfigError: the checkpoint lacks a tensor, or has it in another shape or dtype.
    """
    stored = checkpoint.manifest.tensors
    for each in held:
        name, spec = each.part.name, each.spec
        found = stored.get(name)
        if found is None or (found.shape, found.dtype) != (spec.shape, spec.dtype):
            has = "no such tensor" if found is None else f"{found.dtype} {list(found.shape)}"
            fits = f"{checkpoint.directory} has {has} for {name}, {spec.dtype} {list(spec.shape)} here"
            raise ConfigError("checkpoint.resume", True, fits)
        if each.tensor.device.type == "cpu":
            checkpoint.read_into(name, each.part.tensor_slice, items(each.tensor))
        else:
            each.tensor.copy_(load_tensor(checkpoint, name, each.part.tensor_slice))


def random_streams(checkpoint: Checkpoint, rank: int) -> dict[str, Tensor]:
    """Stream name -> state of a rank's random generators, as that rank saved them; empty if it saved none."""
    prefix = f"rng/{rank:05d}/"
    names = [name for name in checkpoint.manifest.tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): load_tensor(checkpoint, name) for name in names}
