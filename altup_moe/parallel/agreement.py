"""What ranks must have in common before the first step, and the line that says who differs. Pure; knows no torch.

Every rank makes a `Fingerprint`. Rank 0 gets the digest of each, 64 characters; only of ranks whose digests differ it
asks for the entries, one rank of each digest, and compares them with those of the majority (`start_meeting`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

SHOWN_KEYS = 5
"""Keys that a line names; of more it says how many there are."""
SHOWN_RANKS = 5
"""Ranks of a group that a line names."""
ASKED_GROUPS = 8
"""Groups of ranks, beside the majority, whose entries are compared."""
MISSING = "missing"
"""Value of an entry that a rank does not have."""
ADVICE = "start every rank with the same command, code, packages and files"


@dataclass(frozen=True)
class Fingerprint:
    """What one rank would train with: dotted configuration keys and other names -> values as text."""

    entries: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all entries."""
        return hashlib.sha256(json.dumps(sorted(self.entries.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Party:
    """Ranks with one fingerprint. ``host``: the machine of the lowest of them."""

    ranks: tuple[int, ...]
    host: str
    entries: Mapping[str, str]

    def __str__(self) -> str:
        more = len(self.ranks) - SHOWN_RANKS
        numbers = ", ".join(map(str, self.ranks[:SHOWN_RANKS])) + (f" and {more} more" if more > 0 else "")
        return f"rank{'s' * (len(self.ranks) > 1)} {numbers} ({self.host})"


def parties(digests: Sequence[str]) -> list[tuple[int, ...]]:
    """Ranks of each digest, the most numerous first; of equal numbers the one with the lowest rank.

    Args:
        digests: by rank.
    """
    found: dict[str, list[int]] = {}
    for rank, digest in enumerate(digests):
        found.setdefault(digest, []).append(rank)
    return [tuple(ranks) for ranks in sorted(found.values(), key=lambda ranks: (-len(ranks), ranks[0]))]


def difference_line(majority: Party, others: Iterable[Party]) -> str:
    """One line: each key that differs, who has which value, and what most ranks have."""
    # A key with the same value in two groups is named once.
    holders: dict[tuple[str, str], list[Party]] = {}
    for party in others:
        for key in sorted(party.entries.keys() | majority.entries.keys()):
            value = party.entries.get(key, MISSING)
            if value != majority.entries.get(key, MISSING):
                holders.setdefault((key, value), []).append(party)
    if not holders:
        return f"ranks differ in a way that their entries do not show; {ADVICE}"
    count = len(majority.ranks)
    rest = str(majority) if count == 1 else f"the {count} others (rank {majority.ranks[0]} on {majority.host})"
    shown = [
        f"{key} is {value} on {', '.join(map(str, who))} and {majority.entries.get(key, MISSING)} on {rest}"
        for (key, value), who in list(holders.items())[:SHOWN_KEYS]
    ]
    more = len(holders) - len(shown)
    return f"ranks differ: {'; '.join(shown)}{f'; and {more} more keys' if more else ''}; {ADVICE}"
