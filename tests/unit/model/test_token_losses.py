"""Losses in chunks of positions are those of all at once, and logits are never whole."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from altup_moe.model.build import build_chunk, set_weights
from altup_moe.parallel.topology import Topology
from tests.distributed.cases import micro_batch, skewed, small

VOCABULARY = 4096


class LargestTensor(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def losses(topo: Topology, chunk: int | None, tied: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(losses [B, S], gradient of the output matrix, numbers in the largest tensor)."""
    config = small(
        "one",
        model={
            "num_layers": 1,
            "seq_length": 64,
            "vocab_size": VOCABULARY,
            "share_embeddings_and_output_weights": tied,
        },
        moe={"num_experts": 0},
        train={"loss_chunk": chunk, "micro_batch_size": 4},
    )
    model = build_chunk(config, topo, None).train()
    set_weights([model], config, topo, skewed)
    tokens, labels = micro_batch(config, 0)
    with LargestTensor() as largest:
        found = model(tokens, labels)
        found.mean().backward()
    weight = model.embedding.word_embeddings.weight if tied else model.output_layer.weight
    return found.detach(), weight.grad, largest.numbers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_have_the_losses_and_gradients_of_all(alone: Topology, chunk: int, tied: bool) -> None:
    expected, gradient, whole = losses(alone, None, tied)
    got, same, largest = losses(alone, chunk, tied)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(same, gradient, rtol=1e-5, atol=1e-7)
    assert whole == 64 * 4 * VOCABULARY
    assert largest == max(min(chunk, 64) * 4 * VOCABULARY, VOCABULARY * 32)
