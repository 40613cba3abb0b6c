"""Which elements of which parameter a rank updates under DeepSpeed's ZeRO: together all, each once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint import optimizer_shards as module
from altup_moe.checkpoint.optimizer_shards import optimizer_shards, zero3_weight_shard

SHAPES = [(3, 5), (7,), (2, 2), (1,), (4, 6)]


class Group:
    """A process group as far as anybody asks: this process's rank in it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.fixture(autouse=True)
def _ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.dist, "get_rank", lambda group: group.rank)


def parameters() -> list[Tensor]:
    """Parameters whose values count on: each element knows its place in the line of all."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [part.view(shape) for part, shape in zip(torch.arange(sum(sizes)).float().split(sizes), SHAPES, strict=True)]


def line_optimizer(held: list[Tensor], rank: int, ranks: int) -> Any:
    """What is read of ZeRO 1 and 2: one group, its line padded to equal parts."""
    offsets, end = [], 0
    for parameter in held:
        offsets.append(end)
        end += parameter.numel()
    size = -(-end // ranks)
    line = torch.cat([*(parameter.reshape(-1) for parameter in held), torch.full((size * ranks - end,), -1.0)])
    return SimpleNamespace(
        optimizer=None,
        round_robin_bit16_groups=[held],
        round_robin_bit16_offsets=[offsets],
        partition_size=[size],
        real_dp_process_group=[Group(rank)],
        single_partition_of_fp32_groups=[line[size * rank : size * (rank + 1)]],
    )


def cut_optimizer(held: list[Tensor], rank: int, ranks: int) -> Any:
    """What is read of ZeRO 3: every parameter cut, the parts padded to equal size."""
    parts = []
    for parameter in held:
        size = -(-parameter.numel() // ranks)
        padded = torch.cat([parameter.reshape(-1), torch.full((size * ranks - parameter.numel(),), -1.0)])
        cut: Any = parameter
        cut.ds_tensor, cut.ds_numel, cut.ds_process_group = (
            padded[size * rank : size * (rank + 1)],
            parameter.numel(),
            Group(rank),
        )
        cut.partition_numel = lambda size=size: size
        parts.append(cut.ds_tensor)
    return SimpleNamespace(
        optimizer=None,
        fp16_groups=[held],
        sub_group_process_groups=[Group(rank)],
        fp32_partitioned_groups_flat=[torch.cat(parts)],
    )


@pytest.mark.parametrize("make", [line_optimizer, cut_optimizer])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_element_is_updated_once(make: Any, ranks: int) -> None:
    seen = [torch.zeros(shape).view(-1) for shape in SHAPES]
    for rank in range(ranks):
        held = parameters()
        found = optimizer_shards(held, make(held, rank, ranks))
        for parameter, counts in zip(held, seen, strict=True):
            shard = found.get(id(parameter))
            if shard is None:
                continue
            assert torch.equal(shard.elements_of(shard.tensor), parameter.view(-1)[shard.start : shard.stop])
            counts[shard.start : shard.stop] += 1
    assert all((counts == 1).all() for counts in seen)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_every_weight_is_kept_once(ranks: int) -> None:
    seen = [torch.zeros(shape).view(-1) for shape in SHAPES]
    for rank in range(ranks):
        held = parameters()
        cut_optimizer(held, rank, ranks)
        for parameter, counts in zip(held, seen, strict=True):
            cut = zero3_weight_shard(parameter)
            assert cut is not None
            values, start, stop = cut
            assert torch.equal(values, parameter.view(-1)[start:stop])
            counts[start:stop] += 1
    assert all((counts == 1).all() for counts in seen)


def test_a_whole_weight_is_not_cut() -> None:
    assert zero3_weight_shard(torch.zeros(3)) is None
