"""A checkpoint's tensors as a person reads them: by layer, experts that are alike in one row. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from altup_moe.checkpoint.manifest import StoredTensor

_LAYER = re.compile(r"(model\.layers\.\d+)\.(.+)")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class ListedTensor:
    """A parameter or buffer with what is stored of it: by kind its dtype, and its norm where it was taken."""

    name: str
    shape: tuple[int, ...]
    dtypes: dict[str, str]
    norms: dict[str, float]


@dataclass(frozen=True)
class ListingRow:
    """Tensors of one group that are alike. ``label``: name inside the group; ``members``: one, or an expert each."""

    group: str
    label: str
    members: tuple[ListedTensor, ...]


def listed_tensors(tensors: Mapping[str, StoredTensor], norms: Mapping[str, float]) -> list[ListedTensor]:
    """Stored tensors by parameter, kinds beside each other, layers and experts in the order of their numbers.

    Args:
        tensors: by stored name (KIND/NAME); random streams are left out. norms: of all, some or none of them.
    """
    kinds: dict[str, dict[str, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # "weights" sorts last of the kinds, and is the one to be read first.
    for stored in sorted(tensors, key=lambda name: (not name.startswith("weights/"), name)):
        kind, _, name = stored.partition("/")
        if kind != "rng":
            kinds.setdefault(name, {})[kind] = tensors[stored].dtype
            shapes.setdefault(name, tensors[stored].shape)
    return [
        ListedTensor(
            name, shapes[name], kinds[name], {k: norms[s] for k in kinds[name] if (s := f"{k}/{name}") in norms}
        )
        for name in sorted(kinds, key=natural_sort_key)
    ]


def natural_sort_key(name: str) -> list[tuple[bool, int, str]]:
    """Sorting key: numbers in a name by their value."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def listing_rows(found: Iterable[ListedTensor]) -> list[ListingRow]:
    """Entries grouped by layer; the experts of a layer with the same shapes and dtypes are one row."""
    alike: dict[tuple, list[ListedTensor]] = {}
    for entry in found:
        layer = _LAYER.fullmatch(entry.name)
        group, label = (layer[1], layer[2]) if layer else ("", entry.name)
        expert = _EXPERT.fullmatch(label)
        label = f"{expert[1]}.*.{expert[3]}" if expert else label
        alike.setdefault((group, label, entry.shape, tuple(entry.dtypes.items())), []).append(entry)
    listed = [ListingRow(key[0], key[1], tuple(members)) for key, members in alike.items()]
    return [_named(row) for row in listed]


def _named(row: ListingRow) -> ListingRow:
    """Say which experts a row is of: all numbers in a row as a range."""
    if "*" not in row.label:
        return row
    numbers = [int(found[2]) for entry in row.members if (found := _EXPERT.fullmatch(entry.name))]
    first, last = numbers[0], numbers[-1]
    dense = numbers == list(range(first, last + 1))
    which = f"{first}-{last}" if dense and last > first else ",".join(map(str, numbers))
    return ListingRow(row.group, row.label.replace("*", which), row.members)
