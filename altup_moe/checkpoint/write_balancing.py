"""Which rank writes what several ranks hold: every part once, the work shared evenly. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.slices import num_elements
from altup_moe.checkpoint.write import NamedSlice, TensorSpec


def part_bytes(part: NamedSlice, forms: Mapping[str, TensorSpec]) -> int:
    """Bytes of a part's items."""
    return num_elements(part.box) * ITEM_BYTES[forms[part.name].dtype]


def balance_writes(
    holders: Mapping[NamedSlice, Sequence[int]], forms: Mapping[str, TensorSpec]
) -> dict[NamedSlice, int]:
    """The one rank that writes each part: largest part first, to its holder with the fewest bytes so far.

    What only one rank can write is counted before anything is chosen. The answer depends on nothing but the
    arguments' contents (not on their order), so every rank may work it out alone.

    Args:
        holders: the ranks that hold each part, at least one; parts of one tensor are equal or disjoint.
        forms: dtype of every tensor.
    Returns:
        The writer of each part, in the order of `holders`.
    """
    load: defaultdict[int, int] = defaultdict(int)
    writers = dict.fromkeys(holders, -1)

    def give(part: NamedSlice, rank: int) -> None:
        writers[part] = rank
        load[rank] += part_bytes(part, forms)

    shared = []
    for part, ranks in holders.items():
        if len(set(ranks)) == 1:
            give(part, ranks[0])
        else:
            shared.append(part)
    for part in sorted(shared, key=lambda part: (-part_bytes(part, forms), part.name, part.box)):
        give(part, min(holders[part], key=lambda rank: (load[rank], rank)))
    return writers
