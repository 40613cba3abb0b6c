"""Cells of a study's report that stay empty, and why: known from the rows that are planned, before any is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Protocol


class Planned(Protocol):
    """A row, planned or finished."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def seed(self) -> int: ...


def gaps(rows: Iterable[Planned], reference: str) -> list[str]:
    """What the report of these rows will not say, one line for each reason.

    Args:
        reference: the family that others are compared with.
    """
    seeds: dict[str, set[int]] = {}
    families: dict[str, set[str]] = {}
    for row in rows:
        seeds.setdefault(row.name, set()).add(row.seed)
        families.setdefault(row.family, set()).add(row.name)
    return [*_of_reference(families, reference), *_of_seeds(seeds)]


def _of_reference(families: dict[str, set[str]], reference: str) -> Iterator[str]:
    sizes, others = families.get(reference, set()), [family for family in families if family != reference]
    if not others:
        return
    if not sizes:
        yield (
            f"no row is of the reference family {reference}: no difference of losses, no latency ratio and no speed at "
            f"equal quality; study report --reference FAMILY takes another ({', '.join(map(repr, others))})"
        )
    elif len(sizes) == 1:
        yield (
            "speed at equal quality stays a dash: it needs two models of the reference family "
            f"{reference}, and the study has 1; the latency ratio to it is given"
        )


def _of_seeds(seeds: dict[str, set[int]]) -> Iterator[str]:
    if single := [name for name, own in seeds.items() if len(own) == 1]:
        yield (
            "one seed, so no spread, no interval, no verdict and no ring of the Pareto front: " + _listed(single, seeds)
        )
    if double := [name for name, own in seeds.items() if len(own) == 2]:
        yield (
            "two seeds, so wide intervals (12.7 standard errors to either side in pairs; three seeds: 4.3, five: "
            f"2.8): {_listed(double, seeds)}"
        )


def _listed(names: list[str], known: Collection[str]) -> str:
    return "all models" if len(names) == len(known) else ", ".join(names)
