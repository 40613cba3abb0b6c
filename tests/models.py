"""What a model that was written and read again must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def assert_same_model(loaded: nn.Module, model: nn.Module, logits: Callable[[Any], Tensor]) -> None:
    """Every weight bit for bit, and the same logits.

    Those not bit for bit: a file's weights lie at other offsets from a cache line than those of a model that was
    built, and where MKL takes its SSE4.2 kernels (AMD processors) a product with one row rounds by that.

    Args:
        logits: of either model, for the same tokens.
    """
    theirs, ours = loaded.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert theirs[name].dtype == value.dtype, name
        assert torch.equal(theirs[name], value), name
    with torch.no_grad():
        torch.testing.assert_close(logits(loaded), logits(model))
