"""The wide stream: which number lies where, and that widening and narrowing undo each other."""

from __future__ import annotations

import pytest
import torch

from altup_moe.altup.shape import embedding_width, output_width
from altup_moe.altup.stream import (
    copy_blocks,
    join_blocks,
    narrow,
    split_blocks,
    sum_blocks,
    sum_features,
    widen,
)

S, B, D = 3, 2, 5
WIDTHS = [1, 2, 3, 4, 8]


@pytest.mark.parametrize("width", WIDTHS)
def test_block_k_is_the_contiguous_slice_k(width: int) -> None:
    wide = torch.randn(S, B, width * D)
    stream = split_blocks(wide, width)
    assert stream.shape == (width * S, B, D)
    assert stream.is_contiguous()
    for k in range(width):
        block = stream[k * S : (k + 1) * S]
        assert block.is_contiguous()
        assert torch.equal(block, wide[..., k * D : (k + 1) * D])


@pytest.mark.parametrize("width", WIDTHS)
def test_split_and_join_are_inverses(width: int) -> None:
    wide, stream = torch.randn(S, B, width * D), torch.randn(width * S, B, D)
    assert torch.equal(join_blocks(split_blocks(wide, width), width), wide)
    assert torch.equal(split_blocks(join_blocks(stream, width), width), stream)


@pytest.mark.parametrize("width", WIDTHS)
def test_copies_are_equal_blocks_and_sum_to_k_times_one(width: int) -> None:
    plain = torch.randn(S, B, D)
    stream = copy_blocks(plain, width)
    for k in range(width):
        assert torch.equal(stream[k * S : (k + 1) * S], plain)
    torch.testing.assert_close(sum_blocks(stream, width), width * plain)


def test_sum_adds_each_block_once() -> None:
    blocks = [10.0**k * torch.ones(S, B, D) for k in range(4)]
    assert torch.equal(sum_blocks(torch.cat(blocks), 4), torch.full((S, B, D), 1111.0))
    assert torch.equal(sum_features(torch.cat(blocks, dim=-1), 4), torch.full((S, B, D), 1111.0))


@pytest.mark.parametrize("variant", ["altup", "gemma", "round_robin", "hc"])
@pytest.mark.parametrize("width", [2, 4])
def test_widen_and_narrow(variant: str, width: int) -> None:
    plain, wide = torch.randn(S, B, D), torch.randn(S, B, width * D)
    recycled, tables = widen(plain, width, variant, True), widen(wide, width, variant, False)
    assert recycled.shape == tables.shape == (width * S, B, D)
    torch.testing.assert_close(narrow(recycled, width, variant, True), width * plain)
    assert torch.equal(narrow(tables, width, variant, False), wide)


def test_the_control_is_summed_at_the_start_and_left_alone_at_the_end() -> None:
    wide = torch.randn(S, B, 4 * D)
    summed = widen(wide, 4, "sum", False)
    torch.testing.assert_close(summed, sum(wide[..., k * D : (k + 1) * D] for k in range(4)))
    assert narrow(summed, 4, "sum", False) is summed


@pytest.mark.parametrize("recycled", [True, False])
@pytest.mark.parametrize("variant", ["altup", "gemma", "round_robin", "hc", "sum"])
def test_one_block_is_the_plain_transformer(variant: str, recycled: bool) -> None:
    plain = torch.randn(S, B, D)
    assert widen(plain, 1, variant, recycled) is plain
    assert narrow(plain, 1, variant, recycled) is plain
    assert embedding_width(D, 1, recycled) == output_width(D, 1, variant, recycled) == D


def test_widths_of_the_tables() -> None:
    assert embedding_width(D, 4, recycled=True) == D
    assert embedding_width(D, 4, recycled=False) == 4 * D
    assert output_width(D, 4, "altup", recycled=True) == D
    assert output_width(D, 4, "altup", recycled=False) == 4 * D
    assert output_width(D, 4, "sum", recycled=False) == D


@pytest.mark.parametrize("recycled", [True, False])
@pytest.mark.parametrize("variant", ["altup", "sum"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_widths_are_those_that_widen_takes_and_narrow_gives(width: int, variant: str, recycled: bool) -> None:
    if variant == "sum" and recycled:
        return  # the configuration refuses it
    embedded = torch.randn(S, B, embedding_width(D, width, recycled))
    out = narrow(widen(embedded, width, variant, recycled), width, variant, recycled)
    assert out.shape == (S, B, output_width(D, width, variant, recycled))
