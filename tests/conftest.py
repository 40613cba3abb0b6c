"""Settings of all tests: no network look-ups, one thread a process (ranks share two cores)."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads it when first imported, and torch may import triton. On a GPU, 0 tests the compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")

# Busy machines are slow: no example has a deadline. The same examples every time: what fails, fails again.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """Tests in a background job start with some signals ignored, and so would everything they start."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(autouse=True)
def stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is marked `stand_in(package)` finds it in `tests/standins`, and so do the ranks that it starts."""
    marker = request.node.get_closest_marker("stand_in")
    if marker is None:
        yield
        return
    (package,) = marker.args
    if package == "transformer_engine":
        # Megatron looks for it once, at import: this process shall go on without, and ranks must be new ones.
        import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401

        monkeypatch.setattr("tests.distributed.ranks._context", multiprocessing.get_context("spawn"))
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins" / f"for_{package}")
    yield
    for name in set(sys.modules) - before:
        if package in name:
            del sys.modules[name]
