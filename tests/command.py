"""Commands as functions, as a user calls them: words in, exit code out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from altup_moe import cli


def command(name: str) -> Callable[[Sequence[str]], int]:
    """`altup-moe NAME` in this process."""
    return lambda words: cli.main([*name.split(), *words])
