"""Reading, mixing and writing equal the variants written out literally: forward and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from altup_moe.altup.mixing import mix_and_write, read
from altup_moe.altup.variants import VARIANTS, selected_block

S, B, D = 3, 2, 5


def literal(variant: str, x_KSBD: Tensor, j: int, c: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The next stream, as the paper says it, block by block."""
    blocks = list(x_KSBD)
    if variant == "round_robin":
        y = torch.tanh(sum(r * x for r, x in zip(c["read"], blocks, strict=True)) @ weight)
        return torch.stack([x + c["scale"] * y if i == j else x for i, x in enumerate(blocks)])
    predicted = [sum(p * x for p, x in zip(row, blocks, strict=True)) for row in c["predict"]]
    y = torch.tanh((blocks[j] if variant == "altup" else predicted[j]) @ weight)
    return torch.stack([p + g * (y - predicted[j]) for p, g in zip(predicted, c["correct"], strict=True)])


def random_case(variant: str, width: int, seed: int) -> tuple[int, list[Tensor]]:
    """(block, [stream, layer weight, coefficients ...]) with asymmetric random coefficients."""
    torch.manual_seed(seed)
    j = selected_block(seed, width, "alternating")
    coefficients = VARIANTS[variant].initial(width, j)
    values = [torch.randn(width, S, B, D), torch.randn(D, D)]
    values += [value + 0.5 * torch.randn_like(value) for value in coefficients.values()]
    return j, [value.requires_grad_() for value in values]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("width", [2, 3, 4, 8])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_literal_form(variant: str, width: int, seed: int) -> None:
    j, leaves = random_case(variant, width, seed)
    stream, weight, *coefficients = leaves
    names = VARIANTS[variant].initial(width, j).keys()
    c = dict(zip(names, coefficients, strict=True))
    probe = torch.randn(width, S, B, D)

    expected = literal(variant, stream, j, c, weight)
    wanted = torch.autograd.grad((expected * probe).sum(), leaves)

    mixing = VARIANTS[variant].mixing(j, c)
    carried, u = read(stream.view(width * S, B, D), mixing, width)
    got = mix_and_write(carried, torch.tanh(u @ weight), mixing)
    gradients = torch.autograd.grad((got.view_as(probe) * probe).sum(), leaves)

    torch.testing.assert_close(got.view_as(expected), expected, rtol=1e-5, atol=1e-5)
    for value, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-4, atol=1e-4)


def test_bf16_stream_keeps_fp32_coefficient_gradients_and_owns_its_memory() -> None:
    c = {k: v.requires_grad_() for k, v in VARIANTS["gemma"].initial(2, 1).items()}
    mixing = VARIANTS["gemma"].mixing(1, c)
    stream = torch.randn(2 * S, B, D).bfloat16().requires_grad_()
    carried, u = read(stream, mixing, 2)
    out = mix_and_write(carried, u * 2, mixing)
    assert out.dtype == u.dtype == torch.bfloat16
    assert out._base is None
    out.float().square().sum().backward()
    assert {value.grad.dtype for value in c.values()} == {torch.float32}
    assert stream.grad.dtype == torch.bfloat16


def test_selected_block() -> None:
    assert [selected_block(layer, 4, "alternating") for layer in range(6)] == [0, 1, 2, 3, 0, 1]
    assert {selected_block(layer, 4, "same") for layer in range(6)} == {0}
