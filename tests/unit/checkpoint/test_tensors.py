"""Torch tensors and stored items are the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.shards import item_type
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import DTYPE_NAMES, TORCH_DTYPES, as_tensor, items, load_tensor, load_weights
from tests.unit.checkpoint.models import CONFIG, forms_of, save, values_of


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
@pytest.mark.parametrize("shape", [(), (0, 3), (4,), (2, 3, 2)])
def test_there_and_back_without_a_copy(dtype: str, shape: tuple[int, ...]) -> None:
    values = (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(TORCH_DTYPES[dtype])
    stored = items(values)
    assert (stored.dtype, stored.shape) == (item_type(dtype), shape)
    back = as_tensor(stored, dtype)
    assert (back.dtype, back.shape) == (values.dtype, values.shape)
    assert torch.equal(back, values)
    assert back.data_ptr() == values.data_ptr()
    assert (DTYPE_NAMES[TORCH_DTYPES[dtype]], values.element_size()) == (dtype, ITEM_BYTES[dtype])


def test_bits_that_are_no_numbers_stay() -> None:
    bits = np.array([0x7F800001, 0xFFC00123, 0x80000000, 1], np.uint32)
    assert np.array_equal(items(as_tensor(bits, "F32")), bits)


def test_views_and_parameters_share_memory() -> None:
    whole = torch.nn.Parameter(torch.zeros(4, 6))
    items(whole[:, 2:4])[1, 0] = 0x3F800000
    assert whole[1, 2].item() == 1.0


def test_weights_of_a_checkpoint(tmp_path: Path) -> None:
    values = values_of(forms_of())
    with Checkpoint(save(tmp_path)) as checkpoint:
        weights = load_weights(checkpoint)
        name = "model.layers.1.mlp.experts.2.down_proj.weight"
        part = load_tensor(checkpoint, f"exp_avg/{name}", ((3, 7), (1, 3)))
    assert {f"weights/{key}" for key in weights} == {key for key in values if key.startswith("weights/")}
    for key, tensor in weights.items():
        assert tensor.dtype == (torch.float32 if "altup" in key else torch.bfloat16)
        assert np.array_equal(items(tensor), values[f"weights/{key}"])
    assert np.array_equal(items(part), values[f"exp_avg/{name}"][3:7, 1:3])
    assert part.dtype == torch.float32
    assert CONFIG.altup.width == 2
