"""One SLURM for all tests of a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster
from tests.two_nodes import TwoNodes


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """SLURM with two idle nodes."""
    directory = Path(tempfile.mkdtemp(prefix="altup-slurm-"))  # pytest's paths are too long for sockets
    try:
        with TwoNodes(directory) as nodes:
            cluster = Cluster(nodes)
            cluster.start()
            yield cluster
    finally:
        shutil.rmtree(directory)
