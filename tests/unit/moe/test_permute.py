"""Routes in the order of their experts, without asking how many there are: what Megatron's `permute` gives."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.moe import moe_utils, token_dispatcher

from altup_moe.parallel.compat import mend_megatron, routes_in_order


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_routes_are_those_of_the_mask(share: float) -> None:
    map_TE = torch.rand(17, 5, generator=torch.Generator().manual_seed(3)) < share
    expected = map_TE.T.flatten().nonzero().squeeze(1)
    assert torch.equal(routes_in_order(map_TE, len(expected)), expected)


def test_rows_probabilities_and_gradients_are_megatrons() -> None:
    mend_megatron()
    generator = torch.Generator().manual_seed(4)
    scores, rows = (torch.randn(11, n, generator=generator, dtype=torch.float64) for n in (6, 3))
    map_TE = scores >= scores.topk(2).values[:, -1:]
    results = []
    for permute in (token_dispatcher.permute, moe_utils.permute):
        tokens, probs = rows.clone().requires_grad_(), scores.clone().requires_grad_()
        sent, picked, order = permute(tokens, map_TE, probs=probs, num_out_tokens=22)[:3]
        weights = torch.linspace(-1, 1, 22, dtype=torch.float64)
        ((sent.square().sum(1) + picked) * weights).sum().backward()
        results.append([sent.detach(), picked.detach(), order, tokens.grad, probs.grad])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
