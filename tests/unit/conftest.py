"""Fixtures of several unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from altup_moe.parallel.topology import Topology


@pytest.fixture(scope="module")
def alone() -> Iterator[Topology]:
    """A world of one rank; the environment that `topology` completes is put back."""
    from altup_moe.config import ParallelConfig
    from altup_moe.parallel.topology import topology

    before = dict(os.environ)
    with topology(ParallelConfig()) as topo:
        yield topo
    os.environ.clear()
    os.environ.update(before)
