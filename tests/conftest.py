"""Settings of all tests: no network look-ups, one thread a process (ranks share two cores)."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads it when first imported, and torch may import triton. On a GPU, 0 tests the compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")


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
    """What is marked `stand_in` finds `tests/standins` on the path, and so do the ranks that it starts."""
    if request.node.get_closest_marker("stand_in") is None:
        yield
        return
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins")
    yield
    for name in set(sys.modules) - before:
        if "tutel" in name:
            del sys.modules[name]
