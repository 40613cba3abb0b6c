"""Our router's decision as routes to slots: pure functions, no library."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.moe.slots import routes_of, slots_needed
from tests.backends import usable

TOKENS, EXPERTS = 12, 5


class One:
    """A group of one rank."""

    def size(self) -> int:
        return 1


def decision(seed: int, top_k: int, dropped: float = 0.0, skew: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random probabilities, zero off the map, and a map of top_k routes a token of which some were dropped."""
    generator = torch.Generator().manual_seed(seed)
    scores_TE = torch.rand(TOKENS, EXPERTS, generator=generator, dtype=torch.float64)
    scores_TE[:, 0] += skew
    map_TE = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool).scatter_(1, scores_TE.topk(top_k).indices, True)
    map_TE &= torch.rand(TOKENS, EXPERTS, generator=generator) >= dropped
    return scores_TE * map_TE, map_TE


CASES = given(
    seed=st.integers(0, 10**6),
    top_k=st.integers(1, EXPERTS),
    dropped=st.sampled_from([0.0, 0.3, 1.0]),
    skew=st.sampled_from([0.0, 2.0]),
)


@CASES
def test_routes_are_the_map(seed: int, top_k: int, dropped: float, skew: float) -> None:
    """The routes that are there are the map's, each once, each with its probability."""
    probs_TE, map_TE = decision(seed, top_k, dropped, skew)
    routes = routes_of(probs_TE, map_TE, top_k)
    assert routes.experts_KT.shape == routes.slots_KT.shape == routes.gates_KT.shape == (top_k, TOKENS)
    rebuilt = torch.zeros_like(probs_TE)
    count = torch.zeros(TOKENS, EXPERTS, dtype=torch.long)
    for k in range(top_k):
        for t in range(TOKENS):
            expert = routes.experts_KT[k, t]
            if expert < 0:
                assert routes.gates_KT[k, t] == 0
            else:
                rebuilt[t, expert] += routes.gates_KT[k, t]
                count[t, expert] += 1
    assert torch.equal(rebuilt, probs_TE)
    assert torch.equal(count, map_TE.long())


@CASES
def test_no_two_routes_share_a_slot(seed: int, top_k: int, dropped: float, skew: float) -> None:
    """An expert's routes have its first slots, in the order of their tokens, and C = `slots_needed` is enough."""
    probs_TE, map_TE = decision(seed, top_k, dropped, skew)
    routes = routes_of(probs_TE, map_TE, top_k)
    counts_E = map_TE.sum(0)
    for expert in range(EXPERTS):
        taken = [
            (int(t), int(routes.slots_KT[k, t])) for k, t in (routes.experts_KT == expert).nonzero().tolist()
        ]  # fmt: skip
        assert [slot for _, slot in sorted(taken)] == list(range(int(counts_E[expert])))
    assert slots_needed(counts_E, One()) == counts_E.max()


def test_gradients_go_to_chosen_probabilities_alone() -> None:
    probs_TE, map_TE = decision(3, 2, dropped=0.3)
    leaf = probs_TE.clone().requires_grad_()
    weights = torch.arange(1.0, TOKENS + 1, dtype=torch.float64)
    (routes_of(leaf, map_TE, 2).gates_KT * weights).sum().backward()
    assert torch.equal(leaf.grad, map_TE * weights[:, None])


@pytest.mark.skipif(not usable("deepspeed"), reason="deepspeed is not installed")
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_deepspeeds_own_functions_read_it(top_k: int) -> None:
    """Encoded, multiplied by the expert's number and decoded: each token times the sum over its routes."""
    import deepspeed.moe.sharded_moe as moe

    probs_TE, map_TE = decision(5, top_k, dropped=0.2, skew=2.0)
    routes = routes_of(probs_TE, map_TE, top_k)
    slots = int(slots_needed(map_TE.sum(0), One()))
    x_TD = torch.randn(TOKENS, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = moe._route_slots(routes.experts_KT, routes.slots_KT, EXPERTS, slots)
    numbers = torch.arange(1.0, EXPERTS + 1, dtype=torch.float64)
    out_ECD = moe._sparse_encode(x_TD, places, EXPERTS, slots) * numbers[:, None, None]
    got_TD = moe._sparse_decode(out_ECD.flatten(0, 1), places, routes.gates_KT, TOKENS)
    torch.testing.assert_close(got_TD, x_TD * (probs_TE @ numbers)[:, None])
