"""Sharing out what several ranks hold."""

from __future__ import annotations

import random

from altup_moe.checkpoint.write import NamedSlice, TensorSpec
from altup_moe.checkpoint.write_balancing import balance_writes, part_bytes

SPECS = {f"weights/t{n}": TensorSpec((n, 4), "BF16" if n % 2 else "F32") for n in range(1, 9)}


def part(n: int) -> NamedSlice:
    return NamedSlice(f"weights/t{n}", ((0, n), (0, 4)))


def test_bytes_count_the_slice_and_the_dtype() -> None:
    assert part_bytes(NamedSlice("weights/t2", ((1, 2), (0, 3))), SPECS) == 12
    assert part_bytes(NamedSlice("weights/t3", ((1, 2), (0, 3))), SPECS) == 6


def test_the_largest_part_goes_first_and_ties_go_to_the_lowest_rank() -> None:
    # Bytes: t8 128, t6 96, t4 64, t7 56.
    holders = {part(n): [2, 0, 1] for n in (4, 6, 7, 8)}
    assert balance_writes(holders, SPECS) == {part(8): 0, part(6): 1, part(4): 2, part(7): 2}


def test_what_only_one_rank_holds_is_counted_first() -> None:
    # t8 has one holder: the two smaller ones go to the other rank, although t6 is larger than t8's rank at its turn.
    assert balance_writes({part(6): [0, 1], part(8): [0], part(2): [0, 1]}, SPECS) == {
        part(6): 1,
        part(8): 0,
        part(2): 1,
    }


def test_a_holder_named_twice_is_one_holder() -> None:
    assert balance_writes({part(1): [3, 3]}, SPECS) == {part(1): 3}


def test_order_of_the_arguments_does_not_matter() -> None:
    parts = [NamedSlice("weights/t8", ((row, row + 1), (0, 4))) for row in range(8)] + [part(n) for n in range(1, 8)]
    holders = {p: [0, 1, 2, 3] if i % 3 else [i % 4] for i, p in enumerate(parts)}
    expected = balance_writes(holders, SPECS)
    for seed in range(5):
        order = list(holders)
        random.Random(seed).shuffle(order)
        assert (
            balance_writes({p: random.Random(seed).sample(holders[p], len(holders[p])) for p in order}, SPECS)
            == expected
        )


def test_loads_are_even() -> None:
    specs = {f"weights/{n}": TensorSpec((random.Random(n).randint(1, 100),), "F32") for n in range(200)}
    holders = {NamedSlice(name, ((0, spec.shape[0]),)): range(7) for name, spec in specs.items()}
    load = [0] * 7
    for p, rank in balance_writes(holders, specs).items():
        assert rank in holders[p]
        load[rank] += part_bytes(p, specs)
    assert max(load) - min(load) <= 4 * 100
