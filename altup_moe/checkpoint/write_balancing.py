"""Which rank writes each slice that several ranks hold: every slice once, the bytes balanced over the ranks. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.slices import num_elements
from altup_moe.checkpoint.write import NamedSlice, TensorSpec, WritePlan, plan_files


@dataclass(frozen=True)
class WriteAssignment:
    """Who writes what, equal on every rank but for ``mine``.

    ``specs``: every tensor; ``files``: all files of the checkpoint; ``mine``: this rank's files; ``bytes``: of all
    tensors.
    """

    specs: dict[str, TensorSpec]
    files: WritePlan
    mine: WritePlan
    bytes: int


def part_bytes(part: NamedSlice, specs: Mapping[str, TensorSpec]) -> int:
    """Size of a slice in bytes."""
    return num_elements(part.tensor_slice) * ITEM_BYTES[specs[part.name].dtype]


def balance_writes(
    holders: Mapping[NamedSlice, Sequence[int]], specs: Mapping[str, TensorSpec]
) -> dict[NamedSlice, int]:
    """The one rank that writes each slice: largest slice first, to its holder with the fewest bytes so far.

    Slices that only one rank holds are assigned before all others. The result depends on the contents of the arguments
    alone, not on their order, so every rank can compute it by itself.

    Args:
        holders: the ranks that hold each slice, at least one; slices of one tensor are equal or disjoint.
        specs: shape and dtype of every tensor.
    Returns:
        The writer of each slice, in the order of `holders`.
    """
    load: defaultdict[int, int] = defaultdict(int)
    writers = dict.fromkeys(holders, -1)

    def assign(part: NamedSlice, rank: int) -> None:
        writers[part] = rank
        load[rank] += part_bytes(part, specs)

    replicated = []
    for part, ranks in holders.items():
        if len(set(ranks)) == 1:
            assign(part, ranks[0])
        else:
            replicated.append(part)
    for part in sorted(replicated, key=lambda part: (-part_bytes(part, specs), part.name, part.tensor_slice)):
        assign(part, min(holders[part], key=lambda rank: (load[rank], rank)))
    return writers


def assign_writes(descriptions: Sequence[Sequence[Any]], rank: int) -> WriteAssignment:
    """The assignment for ranks that hold these slices.

    Args:
        descriptions: by rank, (name, slice, tensor shape, dtype) of each slice that the rank holds, as JSON gives them.
        rank: this process's rank.
    """
    specs: dict[str, TensorSpec] = {}
    holders: dict[NamedSlice, list[int]] = {}
    for holder, parts in enumerate(descriptions):
        for name, tensor_slice, shape, dtype in parts:
            specs[name] = TensorSpec(tuple(shape), dtype)
            holders.setdefault(NamedSlice(name, tuple((a, b) for a, b in tensor_slice)), []).append(holder)
    writers = balance_writes(holders, specs)
    plans = [
        plan_files(writer, (part for part, chosen in writers.items() if chosen == writer), specs)
        for writer in range(len(descriptions))
    ]
    files = {name: parts for plan in plans for name, parts in plan.items()}
    return WriteAssignment(specs, files, plans[rank], sum(part_bytes(part, specs) for part in writers))
