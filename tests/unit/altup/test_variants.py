"""Which block a step computes on, and what it is around a branch."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from altup_moe.altup.shape import BRANCHES, step_of, stream_width
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import VARIANTS, StreamVariant, selected_block


def test_selected_block() -> None:
    assert [selected_block(layer, 4, "alternating") for layer in range(6)] == [0, 1, 2, 3, 0, 1]
    assert {selected_block(layer, 4, "same") for layer in range(6)} == {0}


def test_the_control_has_one_block() -> None:
    assert (stream_width(4, "altup"), stream_width(4, "sum")) == (4, 1)


@pytest.mark.parametrize("variant", ["altup", "gemma", "hc", "wide_residual_kept", "leaky"])
def test_a_step_around_a_branch_is_the_one_around_the_branch_with_its_residual(variant: str) -> None:
    """M X + g F(u) around a branch is M X + g (u + F(u)) around F with a residual, for rows and for made-up ones."""
    generator = torch.Generator().manual_seed(0)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    rows = {**VARIANTS, "leaky": StreamVariant("leaky", VARIANTS["hc"].coefficients, weights=made_up)}
    row = rows[variant]
    c = {name: randn(*one.sizes(4, 8)) for name, one in row.coefficients.items()}
    x_KD, y_D = randn(4, 8), randn(8)
    around_layer, around_branch = row.mixing(2, c), row.mixing(2, c, "branch")
    u_D = x_KD[around_layer.read] if isinstance(around_layer.read, int) else around_layer.read @ x_KD
    expected = around_layer.mix @ x_KD + torch.outer(around_layer.write, around_layer.written(u_D, u_D + y_D))
    got = around_branch.mix @ x_KD + torch.outer(around_branch.write, around_branch.written(u_D, y_D))
    assert torch.allclose(got, expected, atol=1e-12)


def made_up(block: int, c: Mapping[str, Tensor]) -> Mixing:
    return Mixing(c["read"], c["mix"], torch.tanh(c["write"]))


def test_steps_are_counted_by_branch() -> None:
    assert [step_of(layer, branch, "branch") for layer in (0, 3) for branch in BRANCHES] == [0, 1, 6, 7]
    assert [step_of(layer, "", "layer") for layer in (0, 3)] == [0, 3]
