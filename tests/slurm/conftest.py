"""One SLURM for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster
from tests.two_nodes import nodes_for_a_while


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """SLURM with two idle nodes."""
    with nodes_for_a_while("altup-slurm-") as nodes:
        cluster = Cluster(nodes)
        cluster.start()
        yield cluster
