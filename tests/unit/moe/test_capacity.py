"""Capacity: how many tokens an expert takes, and which."""

from __future__ import annotations

import pytest
import torch

from altup_moe.moe.capacity import expert_capacity, keep_within_capacity


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "factor", "capacity"),
    [(8, 2, 4, 1.0, 4), (8, 2, 4, 1.25, 5), (7, 1, 4, 1.0, 2), (8, 1, 8, 0.5, 1), (8, 2, 4, 0.3, 2)],
)
def test_capacity_rounds_up(tokens: int, top_k: int, experts: int, factor: float, capacity: int) -> None:
    assert expert_capacity(tokens, top_k, experts, factor) == capacity


def test_the_most_probable_tokens_stay_and_the_earlier_of_equals() -> None:
    probs = torch.tensor([[0.2, 0.0], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.2, 0.8]])
    routed = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 1], [0, 1]]).bool()
    kept = keep_within_capacity(probs, routed, 3)
    # Expert 0: 0.9, 0.5, then the first 0.2 (token 0, not 2). Expert 1: both 0.8 and 0.5; 0.1 goes.
    assert kept.tolist() == [[True, False], [True, False], [False, True], [True, True], [False, True]]


def test_a_routed_token_of_probability_zero_goes_before_tokens_that_were_not_routed() -> None:
    probs, routed = torch.zeros(4, 1), torch.tensor([[0], [0], [1], [1]]).bool()
    assert keep_within_capacity(probs, routed, 1).flatten().tolist() == [False, False, True, False]


def test_enough_room_drops_nothing_and_none_drops_all() -> None:
    probs = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    routed = probs > 0.3
    assert torch.equal(keep_within_capacity(probs, routed, 6), routed)
    assert torch.equal(keep_within_capacity(probs, routed, 100), routed)
    assert not keep_within_capacity(probs, routed, 0).any()


def test_the_rule_is_the_same_however_tokens_are_ordered() -> None:
    generator = torch.Generator().manual_seed(1)
    probs, order = torch.rand(32, 4, generator=generator), torch.randperm(32, generator=generator)
    routed = torch.rand(32, 4, generator=generator) > 0.4
    kept = keep_within_capacity(probs, routed, 5)
    assert torch.equal(keep_within_capacity(probs[order], routed[order], 5), kept[order])
    assert kept.sum(0).tolist() == [5, 5, 5, 5]
    for e in range(4):
        assert probs[kept[:, e], e].min() >= probs[routed[:, e] & ~kept[:, e], e].max()
