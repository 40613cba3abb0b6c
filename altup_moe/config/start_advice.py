"""How to start as many ranks as a layout needs: words of the errors of `checks.py`, which other commands replace."""

from __future__ import annotations

import re
from collections.abc import Callable

_START = re.compile(r"start with altup-moe launch torchrun --ranks-per-node (\d+) -- altup-moe train \.\.\.")


def start_with(ranks: int) -> str:
    """The command that starts a number of ranks."""
    return f"start with altup-moe launch torchrun --ranks-per-node {ranks} -- altup-moe train ..."


def replace_start(fits: str, instead: Callable[[int], str]) -> str:
    """The text of an error with other words where it has `start_with`'s, made from the number of ranks."""
    return _START.sub(lambda found: instead(int(found[1])), fits)
