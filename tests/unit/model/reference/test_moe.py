"""Routing and experts of the plain PyTorch model: by hand, and against Megatron-Core's own functions."""

from __future__ import annotations

import math

import pytest
import torch
from megatron.core.transformer.moe import moe_utils
from torch import Tensor

from altup_moe.model.reference.gpt import AltUpMoEConfig, AltUpMoEForCausalLM
from altup_moe.model.reference.layers import (
    DROPLESS,
    MoE,
    RoutingInput,
    load_balancing_loss,
    route,
    router_z_loss,
    updated_expert_bias,
)


def block(**fields: object) -> MoE:
    torch.manual_seed(0)
    config = AltUpMoEConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, vocab_size=32,
                            num_hidden_layers=1, intermediate_size=16, initializer_range=0.5,
                            **{"num_experts": 4, "moe_intermediate_size": 8, **fields})  # fmt: skip
    return AltUpMoEForCausalLM(config).model.layers[0].mlp


def logits(rows: int = 12, experts: int = 6) -> Tensor:
    skew = torch.linspace(2, -2, experts)
    return torch.randn(rows, experts, generator=torch.Generator().manual_seed(3)) + skew


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_routing_is_megatrons(score_function: str, top_k: int, biased: bool) -> None:
    bias = torch.linspace(-0.5, 0.5, 6) if biased and score_function == "sigmoid" else None
    probs, routed = route(logits(), bias, top_k, score_function)
    theirs = moe_utils.topk_routing_with_score_function(
        logits(), top_k, use_pre_softmax=top_k == 1, score_function=score_function, expert_bias=bias
    )
    torch.testing.assert_close(probs, theirs[0], rtol=0, atol=0)
    assert torch.equal(routed, theirs[1])


@pytest.mark.parametrize("score_function", ["softmax", "sigmoid"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_losses_are_megatrons(score_function: str, top_k: int) -> None:
    routed, scores = moe_utils.compute_routing_scores_for_aux_loss(logits(), top_k, score_function)
    theirs = moe_utils.switch_load_balancing_loss_func(scores, routed.sum(0), 12, top_k, 6, 0.1)
    torch.testing.assert_close(0.1 * load_balancing_loss(logits(), top_k, score_function), theirs)
    torch.testing.assert_close(0.1 * router_z_loss(logits()), moe_utils.z_loss_func(logits(), 0.1))


def test_losses_by_hand() -> None:
    two = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0], [0.0, math.log(4.0)]])
    # Scores 3/4 1/4, 3/4 1/4, 1/5 4/5; counts 2, 1; E / (k T^2) = 2/9.
    assert load_balancing_loss(two, 1, "softmax").item() == pytest.approx(2 / 9 * (1.7 * 2 + 1.3 * 1))
    assert load_balancing_loss(torch.eye(4) * 50, 1, "softmax").item() == pytest.approx(1.0)
    assert router_z_loss(two).item() == pytest.approx((2 * math.log(4) ** 2 + math.log(5) ** 2) / 3)


def test_top_1_softmax_keeps_the_probability() -> None:
    probs, _ = route(torch.tensor([[math.log(3.0), 0.0]]), None, 1, "softmax")
    assert probs.tolist() == [[pytest.approx(0.75), 0.0]]


def test_the_bias_moves_the_choice_and_not_the_weights() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0]])
    probs, routed = route(scores, torch.tensor([-1.0, 0.0, 0.0]), 2, "sigmoid")
    assert routed.tolist() == [[False, True, True]]
    a, b = scores.sigmoid()[0, 1:].tolist()
    assert probs[0].tolist() == pytest.approx([0.0, a / (a + b), b / (a + b)])


def test_the_bias_steps_towards_balance() -> None:
    bias, counts = torch.tensor([0.0, 0.1, 0.0, 0.0]), torch.tensor([8, 0, 4, 4])
    torch.testing.assert_close(updated_expert_bias(bias, counts, 0.01), torch.tensor([-0.01, 0.11, 0.0, 0.0]))


def dense(mlp: MoE, x_TD: Tensor, weights_TE: Tensor) -> Tensor:
    outputs = torch.stack([expert(x_TD) for expert in mlp.experts], 1)
    return torch.einsum("te,ted->td", weights_TE, outputs)


def test_experts_are_weighted_and_the_shared_one_added() -> None:
    mlp = block(moe_shared_expert_size=8, moe_aux_loss_coeff=0.5, moe_z_loss_coeff=0.25)
    x = torch.randn(2, 5, 16)
    y, routing = mlp(x, DROPLESS)
    x_TD = x.transpose(0, 1).reshape(10, 16)
    scores = x_TD @ mlp.router.weight.t()
    probs, routed = route(scores, None, 2, "softmax")
    by_hand = dense(mlp, x_TD, probs) + mlp.shared_expert(x_TD)
    torch.testing.assert_close(y.transpose(0, 1).reshape(10, 16), by_hand)
    assert (routing.counts_E.tolist(), routing.dropped) == (routed.sum(0).tolist(), 0)
    torch.testing.assert_close(routing.aux, 0.5 * load_balancing_loss(scores, 2, "softmax"))
    torch.testing.assert_close(routing.z, 0.25 * router_z_loss(scores))


def test_capacity_drops_the_least_probable_and_renormalises_nothing() -> None:
    mlp, x = block(), torch.randn(2, 8, 16)
    free, (y, routing) = mlp(x, DROPLESS), mlp(x, RoutingInput(0.75))
    x_TD = x.transpose(0, 1).reshape(16, 16)
    probs, _ = route(x_TD @ mlp.router.weight.t(), None, 2, "softmax")
    for e in range(4):  # C = ceil(16 * 2 / 4 * 0.75) = 6
        threshold = probs[:, e].sort(descending=True).values[5]
        probs[:, e] = probs[:, e].where(probs[:, e] >= threshold, 0.0)
    torch.testing.assert_close(y.transpose(0, 1).reshape(16, 16), dense(mlp, x_TD, probs))
    assert routing.counts_E.sum() == 32  # the demand, before dropping
    assert routing.dropped == (routing.counts_E - 6).clamp(min=0).sum() > 0
    assert torch.equal(routing.aux, free[1].aux)  # taken before the drop


def test_capacity_keeps_the_earlier_of_equal_tokens_in_position_order() -> None:
    mlp = block(num_experts=2, num_experts_per_tok=1)
    y, routing = mlp(torch.randn(16).expand(2, 3, 16), RoutingInput(1.0))  # six equal tokens, C = 3
    assert (routing.counts_E.max(), routing.dropped) == (6, 3)
    assert (y.abs().sum(-1) > 0).tolist() == [[True, True, False], [True, False, False]]  # [B, S]; order is s*B + b


def test_only_training_losses_know_a_capacity() -> None:
    fields = {"num_experts": 4, "hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    fields |= {"vocab_size": 32, "num_hidden_layers": 1, "moe_intermediate_size": 8, "initializer_range": 0.5}
    torch.manual_seed(0)
    model = AltUpMoEForCausalLM(AltUpMoEConfig(**fields, moe_capacity_factor=0.5)).eval()
    ids = torch.randint(0, 32, (2, 8))
    tight = model.losses(ids, ids)
    assert tight.dropped[0] > 0
    assert tight.counts[0].sum() == 32
    free = AltUpMoEForCausalLM(AltUpMoEConfig(**fields)).eval()
    free.load_state_dict(model.state_dict())
    assert torch.equal(model(ids).logits, free(ids).logits)
    assert tight.lm_sum != free.losses(ids, ids).lm_sum
