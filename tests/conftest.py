"""Settings of all tests: no network look-ups, one thread a process (ranks share two cores)."""

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else torch's compiler starts a process for each core, which imports torch, in every process that compiles something.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
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


@pytest.fixture
def saw(request: pytest.FixtureRequest) -> Iterator[Callable[[float, int, str], None]]:
    """How a test with the mark `fault(KEY)` reports what it saw: `saw(seconds, exit code, all that was printed)`.

    The exit code is compared with the table of promises (tests/faults/promises.py). Such a test must report. Cases of
    a parametrised test without the mark report nothing.
    """
    from tests.faults.seen import note

    marker = request.node.get_closest_marker("fault")
    if marker is None:
        yield lambda *_: None
        return
    (key,) = marker.args
    reports = []
    yield lambda seconds, code, text: reports.append(note(key, seconds, code, text))
    assert reports, f"the test reports nothing of the fault {key}"


@pytest.fixture(autouse=True)
def stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is marked `stand_in(package)` finds it in `tests/standins`, and so do the ranks that it starts."""
    marker = request.node.get_closest_marker("stand_in")
    if marker is None:
        yield
        return
    (package,) = marker.args
    # Other living ranks have looked for the package already, or would go on with what stands in for it.
    monkeypatch.setattr("tests.distributed.ranks.search_path", package)
    if package == "transformer_engine":
        # Megatron looks for it once, at import: this process shall go on without, and its ranks must import anew.
        import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401

        monkeypatch.setattr("tests.distributed.ranks._context", multiprocessing.get_context("spawn"))
    before = set(sys.modules)
    monkeypatch.syspath_prepend(Path(__file__).parent / "standins" / f"for_{package}")
    yield
    for name in set(sys.modules) - before:
        if package in name:
            del sys.modules[name]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collection imports and makes stays: the garbage collector need not look for any, then or after a test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """At the end modules are garbage like any other."""
    gc.unfreeze()


RANKS_STARTED = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the living ranks, and tell how many rank processes there were."""
    ranks = sys.modules.get("tests.distributed.ranks")
    started = ranks.started if ranks is not None else 0
    if ranks is not None:
        ranks.end_living_ranks()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ranks_started"] = started
    else:
        session.config.stash[RANKS_STARTED] = session.config.stash.get(RANKS_STARTED, 0) + started


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """An xdist worker is done: add its ranks."""
    started = getattr(node, "workeroutput", {}).get("ranks_started", 0)
    node.config.stash[RANKS_STARTED] = node.config.stash.get(RANKS_STARTED, 0) + started


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line: the price of distributed tests."""
    if started := terminalreporter.config.stash.get(RANKS_STARTED, 0):
        terminalreporter.write_line(f"rank processes started: {started}")
