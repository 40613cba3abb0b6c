"""Started collectives on real ranks: values, gradients, empty ranks, wrong sizes, and what runs in between."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from altup_moe.overlap.collectives import AllGather, ReduceScatter, all_to_all, start_collective, wait_for_collective
from tests.distributed.ranks import run_fresh_ranks, run_ranks

pytestmark = pytest.mark.distributed

COUNTS = {
    "skewed": [[1, 5], [2, 0]],
    "all to one": [[0, 4], [0, 3]],
    "nothing sent": [[0, 0], [0, 0]],
    "an idle rank": [[0, 0], [3, 2]],
    "four ranks": [[1, 0, 2, 3], [0, 0, 0, 0], [4, 1, 0, 1], [2, 2, 2, 0]],
}
"""counts[s][r]: rows that rank s sends to rank r."""


def _rows(rank: int, counts: list[list[int]]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(sum(counts[rank]), 3, generator=generator)


def _exchange(counts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    rank = dist.get_rank()
    exchange = all_to_all(dist.group.WORLD, counts[rank], [row[rank] for row in counts])
    sent = _rows(rank, counts).requires_grad_()
    # Two in flight at once, waited for in another order, with work in between.
    twice = sent * 2
    first, second = start_collective(twice, exchange), start_collective(sent, exchange)
    between = twice.square()
    got_second = wait_for_collective(second)
    got = wait_for_collective(first)
    weight = torch.arange(got.numel()).view_as(got).float()
    ((got * weight).sum() + (got_second * 3).sum() + between.sum()).backward()
    return got.detach().numpy(), sent.grad.numpy()


@pytest.mark.parametrize("name", COUNTS)
def test_rows_and_gradients_arrive(name: str) -> None:
    counts = COUNTS[name]
    size = len(counts)
    results = run_ranks(size, _exchange, counts)
    leaves = [_rows(rank, counts).requires_grad_() for rank in range(size)]
    total = torch.zeros(())
    for rank in range(size):
        parts = [leaves[s].split(counts[s])[rank] for s in range(size)]
        expected = torch.cat(parts) * 2
        torch.testing.assert_close(torch.from_numpy(results[rank][0]), expected.detach(), rtol=0, atol=0)
        total = total + (expected * torch.arange(expected.numel()).view_as(expected)).sum() + expected.sum() * 1.5
    total = total + sum((4 * leaf.square()).sum() for leaf in leaves)
    total.backward()
    for rank, leaf in enumerate(leaves):
        torch.testing.assert_close(torch.from_numpy(results[rank][1]), leaf.grad)


def _wrong_sizes() -> list[str]:
    rank, messages = dist.get_rank(), []
    for send in ([1, 1], [3], [4, -1]):
        try:
            start_collective(torch.zeros(3, 2), all_to_all(dist.group.WORLD, send, [1, 2]))
        except ValueError as error:
            messages.append(str(error))
    # The group still works: nothing was launched.
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total.item() == 2
    return [m for m in messages if f"rank {rank} of 2" in m]


def test_wrong_sizes_are_named_before_anything_is_sent() -> None:
    for messages in run_ranks(2, _wrong_sizes):
        assert len(messages) == 3
        assert "[1, 1] do not add up to the tensor's 3 rows" in messages[0]
        assert "[3] are not 2 counts" in messages[1]


def _scatter_and_gather() -> list:
    rank = dist.get_rank()
    sent = (torch.arange(8.0).view(4, 2) + 10 * rank).requires_grad_()
    kept = wait_for_collective(start_collective(sent, ReduceScatter(dist.group.WORLD)))
    (kept * (rank + 1)).sum().backward()
    part = torch.full((1, 2), float(rank), requires_grad=True)
    whole = wait_for_collective(start_collective(part, AllGather(dist.group.WORLD)))
    (whole * (rank + 1)).sum().backward()
    return [kept.tolist(), sent.grad.tolist(), whole.tolist(), part.grad.tolist()]


def test_reduce_scatter_and_all_gather_are_each_others_gradient() -> None:
    for rank, (kept, sent_grad, whole, part_grad) in enumerate(run_ranks(2, _scatter_and_gather)):
        full = 2 * torch.arange(8.0).view(4, 2) + 10
        assert kept == full[2 * rank : 2 * rank + 2].tolist()
        assert sent_grad == [[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
        assert whole == [[0.0, 0.0], [1.0, 1.0]]
        assert part_grad == [[3.0, 3.0]]


def _order() -> list[str]:
    """What happens when, in the forward and in the backward pass, around one exchange."""
    from altup_moe.overlap import collectives as module

    seen: list[str] = []
    launch, land = module.Flight.launch, module.Flight.land

    def noting(name, function):
        return lambda self, *args: (seen.append(f"{name}{' back' if self._backward else ''}"), function(self, *args))[1]

    module.Flight.launch, module.Flight.land = noting("launch", launch), noting("land", land)

    class Work(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append("work")
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            seen.append("work back")
            return grad * 2

    x = torch.ones(2, 1, requires_grad=True)
    started = start_collective(x * 3, all_to_all(dist.group.WORLD, [1, 1], [1, 1]))
    other = Work.apply(x)
    (wait_for_collective(started) + other).sum().backward()
    return seen


def test_the_backward_pass_mirrors_the_window() -> None:
    for seen in run_fresh_ranks(2, _order):
        assert seen == ["launch", "work", "land", "launch back", "work back", "land back"]


def _differing(kind: str) -> str:
    """On a rank: an exchange of which rank 1 has other sizes. Returns the error; gloo alone would end the process."""
    rank, world = dist.get_rank(), dist.group.WORLD
    rows = torch.zeros(4, 6 if kind == "width" and rank == 1 else 3)
    more = torch.zeros(6 if rank == 1 else 4, 3)
    counts = {"rows": ([2, 2], [2, 1 if rank == 0 else 2]), "width": ([2, 2], [2, 2])}
    exchanges = {
        "rows": lambda: start_collective(rows, all_to_all(world, *counts["rows"])),
        "width": lambda: start_collective(rows, all_to_all(world, *counts["width"])),
        "all-gather": lambda: start_collective(more, AllGather(world)),
        "reduce-scatter": lambda: start_collective(more, ReduceScatter(world)),
    }
    with pytest.raises(ValueError, match="rank 1") as caught:
        exchanges[kind]()
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("rows", "all-to-all: rank 1 sends 2 rows to rank 0, which expects 1"),
        ("width", "all-to-all: a row has 12 bytes on rank 0 and 24 on rank 1"),
        ("all-gather", "all-gather: rank 0 sends 4 rows to rank 1, which expects 6"),
        ("reduce-scatter", "reduce-scatter: rank 0 sends 2 rows to rank 1, which expects 3"),
    ],
)
def test_sizes_that_differ_are_an_error_on_every_rank(kind: str, says: str) -> None:
    # Living ranks: had the process been aborted, they could not answer.
    assert run_ranks(2, _differing, kind) == [says, says]
