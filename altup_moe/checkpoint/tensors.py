"""Convert between stored items (numpy unsigned integers) and torch tensors without copying."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.source import Checkpoint
from altup_moe.parallel.parameter_mapping import TensorSlice

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
"""torch dtype -> safetensors' name."""
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def items(tensor: Tensor) -> np.ndarray:
    """A CPU tensor's items as unsigned integers; shares its memory."""
    size = tensor.element_size()
    return tensor.detach().view(_SIGNED[size]).numpy().view(_UNSIGNED[size])


def as_tensor(array: np.ndarray, dtype: str) -> Tensor:
    """Items of a stored dtype as a tensor that shares their memory."""
    signed = array.view({1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}[array.itemsize])
    return torch.from_numpy(signed).view(TORCH_DTYPES[dtype])


def load_tensor(checkpoint: Checkpoint, name: str, tensor_slice: TensorSlice | None = None) -> Tensor:
    """A slice of a stored tensor; None loads the whole tensor."""
    return as_tensor(checkpoint.read(name, tensor_slice), checkpoint.manifest.tensors[name].dtype)


def load_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Global name -> parameter or buffer, whole: a state dict of the reference model."""
    return {name: load_tensor(checkpoint, f"weights/{name}") for name in checkpoint.manifest.of_kind("weights")}
