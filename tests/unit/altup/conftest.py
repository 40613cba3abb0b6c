"""The implementations of the one pass, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from altup_moe.altup.kernels import Kernel, kernel
from tests.unit.altup.implementations import CPU, TRITON_DEVICE


@pytest.fixture(scope="session", params=["torch", "triton"])
def light(request: pytest.FixtureRequest) -> tuple[Kernel, torch.device]:
    """The implementations of the one pass that are ready at once."""
    device = TRITON_DEVICE if request.param == "triton" else CPU
    return kernel(request.param, device), device


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """The compiled implementation, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield kernel("compile", CPU)
