"""`fast_encode` and `fast_decode` as Tutel 0.4 has them: what they ask of their arguments, and what they compute.

Autograd differentiates what Tutel's kernels differentiate by hand: encode carries rows to slots as they are, decode
brings them back weighted by their gates.
"""

from __future__ import annotations

import torch
from torch import Tensor

Critical = tuple[int, list[Tensor], list[Tensor], list[Tensor], int, object]
"""(experts, and K vectors each of expert, slot and gate of a token's k-th route; slots of an expert; unused)."""


def _check(data: Tensor, critical: Critical) -> None:
    experts, indices, locations, gates, slots, _ = critical
    assert data.is_contiguous()
    assert isinstance(experts, int)
    assert isinstance(slots, int)
    assert slots > 0
    assert len(indices) == len(locations) == len(gates) > 0
    for index, location, gate in zip(indices, locations, gates, strict=True):
        # The kernels read them as raw memory.
        assert index.dtype == location.dtype == torch.int32
        assert index.dim() == location.dim() == gate.dim() == 1
        assert index.is_contiguous()
        assert location.is_contiguous()
        assert gate.is_contiguous()


def _places(critical: Critical, k: int) -> tuple[Tensor, Tensor]:
    """Tokens whose k-th route there is, and the rows of the flattened buffer that they go to."""
    _, indices, locations, _, slots, _ = critical
    there = ((indices[k] >= 0) & (locations[k] < slots)).nonzero().squeeze(1)
    return there, indices[k][there].long() * slots + locations[k][there].long()


def fast_encode(data: Tensor, critical: Critical, is_postscore: bool = True) -> Tensor:
    """Rows [T, D] -> slots [E, C, D], zero where nothing goes."""
    _check(data, critical)
    assert is_postscore
    experts, slots, width = critical[0], critical[4], data.shape[1]
    encoded = data.new_zeros(experts * slots, width)
    for k in range(len(critical[1])):
        tokens, rows = _places(critical, k)
        encoded = encoded.index_add(0, rows, data[tokens])
    return encoded.view(experts, slots, width)


def fast_decode(data: Tensor, critical: Critical, is_postscore: bool = True) -> Tensor:
    """Slots [E, C, D] -> rows [T, D]: each token's sum of its routes' outputs times their gates."""
    _check(data, critical)
    assert is_postscore
    flat = data.view(-1, data.shape[-1])
    decoded = data.new_zeros(critical[1][0].shape[0], data.shape[-1])
    for k, gates in enumerate(critical[3]):
        tokens, rows = _places(critical, k)
        decoded = decoded.index_add(0, tokens, flat[rows] * gates[tokens, None].to(flat.dtype))
    return decoded
