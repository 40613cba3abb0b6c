"""A checkpoint's tensors as a table: grouped by layer, with experts of equal shape in one row. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from altup_moe.checkpoint.manifest import StoredTensor

_LAYER = re.compile(r"(model\.layers\.\d+)\.(.+)")
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.+)")


@dataclass(frozen=True)
class ListedTensor:
    """A parameter or buffer. ``dtypes``: stored kind -> dtype; ``norms``: stored kind -> L2 norm, where computed."""

    name: str
    shape: tuple[int, ...]
    dtypes: dict[str, str]
    norms: dict[str, float]


@dataclass(frozen=True)
class ListingRow:
    """One row: a tensor of a group (layer), or the same tensor of several experts.

    ``label``: name inside the group; ``members``: the tensors.
    """

    group: str
    label: str
    members: tuple[ListedTensor, ...]


def listed_tensors(tensors: Mapping[str, StoredTensor], norms: Mapping[str, float]) -> list[ListedTensor]:
    """One entry for each parameter, with all its stored kinds; layers and experts in numerical order.

    Args:
        tensors: by stored name (KIND/NAME); random states are left out.
        norms: stored name -> L2 norm, for any of the tensors.
    """
    kinds: dict[str, dict[str, str]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    # Weights first, then optimizer state.
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
    """Key that sorts numbers in names by value."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def listing_rows(found: Iterable[ListedTensor]) -> list[ListingRow]:
    """Entries grouped by layer; experts of a layer with equal shapes and dtypes share a row."""
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
    """Replace ``*`` in the label by the experts' numbers; consecutive numbers become a range."""
    if "*" not in row.label:
        return row
    numbers = [int(found[2]) for entry in row.members if (found := _EXPERT.fullmatch(entry.name))]
    first, last = numbers[0], numbers[-1]
    dense = numbers == list(range(first, last + 1))
    which = f"{first}-{last}" if dense and last > first else ",".join(map(str, numbers))
    return ListingRow(row.group, row.label.replace("*", which), row.members)
