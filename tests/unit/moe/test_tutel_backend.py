"""Routes as Tutel wants them, and batched experts against those that go through their rows one expert at a time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from altup_moe.moe.grouped import grouped_mlp
from altup_moe.moe.slots import routes_of
from altup_moe.parallel.topology import Topology
from tests.backends import installed
from tests.unit.moe.test_slots import decision

pytestmark = pytest.mark.parametrize("backend", [installed("tutel")])


@pytest.mark.parametrize("dropped", [0.0, 0.4, 1.0])
def test_there_and_back_is_the_weighted_sum(backend: str, dropped: float) -> None:
    """Experts that do nothing: every token returns times the sum of its probabilities, and gradients follow."""
    from tutel.moe import fast_decode, fast_encode

    from altup_moe.moe.tutel_backend import tutel_routes

    probs_TE, map_TE = decision(3, top_k=2, dropped=dropped, skew=1.0)
    probs_TE = probs_TE.float().requires_grad_()
    rows_TD = torch.randn(len(map_TE), 8, requires_grad=True)
    slots = int(map_TE.sum(0).max())
    routes = tutel_routes(routes_of(probs_TE, map_TE, 2), map_TE.shape[1], slots)
    encoded = fast_encode(rows_TD, routes)
    assert encoded.shape == (map_TE.shape[1], max(1, slots), 8)
    returned = fast_decode(encoded, routes)
    torch.testing.assert_close(returned, rows_TD * probs_TE.sum(1, keepdim=True))
    returned.sum().backward()
    torch.testing.assert_close(rows_TD.grad, (probs_TE.sum(1, keepdim=True)).expand_as(rows_TD))
    torch.testing.assert_close(probs_TE.grad, rows_TD.sum(1, keepdim=True) * map_TE)


def test_batched_experts_are_the_grouped_ones(backend: str, alone: Topology) -> None:
    """Slots of two sending ranks: expert e of a rank has the rows of both."""
    from altup_moe.moe.tutel_backend import BatchedExperts

    sizes = {"hidden_size": 8, "moe_ffn_hidden_size": 12}
    config = SimpleNamespace(**sizes, activation="silu", compiled=False, params_dtype=torch.float32)
    experts = BatchedExperts(3, config, pg_collection=alone.groups)
    for weight in experts.parameters():
        torch.nn.init.normal_(weight)
    rows_GECD = torch.randn(2, 3, 5, 8, requires_grad=True)
    output = experts(rows_GECD)
    grad = torch.randn_like(output)
    output.backward(grad)
    got = [rows_GECD.grad, *(weight.grad for weight in experts.parameters())]

    again_GECD = rows_GECD.detach().clone().requires_grad_()
    for weight in experts.parameters():
        weight.grad = None
    sorted_RD = again_GECD.transpose(0, 1).reshape(-1, 8)
    expected = grouped_mlp(sorted_RD, torch.ones(30), experts.fc1, experts.fc2, [10, 10, 10], "loop")
    expected = expected.view(3, 2, 5, 8).transpose(0, 1)
    torch.testing.assert_close(output, expected)
    expected.backward(grad)
    for value, want in zip(got, [again_GECD.grad, *(weight.grad for weight in experts.parameters())], strict=True):
        torch.testing.assert_close(value, want)
