"""Megatron's decorators compile at the first call, not at the import; on a CPU never."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from altup_moe.parallel.compile_later import compile_later
from altup_moe.parallel.patches import COMPILE, replace

IMPORT = """
import sys, warnings
warnings.filterwarnings("ignore")
from altup_moe.parallel.compile_later import compile_later
with compile_later():
    import altup_moe.train.loop
from megatron.core.fusions.fused_bias_geglu import geglu
print("torch._dynamo" in sys.modules, hasattr(geglu, "__wrapped__"))
"""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What `torch.compile`, replaced for the test, was given, with its options; as where there is a GPU."""
    given: list[Any] = []

    def compile_now(function: Any, **options: Any) -> Any:
        given.append((function, options))
        return function

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    real = replace(COMPILE, compile_now)
    yield given
    replace(COMPILE, real)


def test_a_function_is_compiled_by_its_first_call_alone(compiled: list[Any]) -> None:
    def double(x: int) -> int:
        return 2 * x

    def triple(x: int) -> int:
        return 3 * x

    with compile_later():
        plain: Callable[[int], int] = torch.compile(double)
        optioned: Callable[[int], int] = torch.compile(dynamic=True)(triple)
    assert compiled == []
    assert (plain(2), plain(3), optioned(2)) == (4, 6, 6)
    assert compiled == [(double, {}), (triple, {"dynamic": True})]
    assert plain.__name__ == "double"


def test_on_a_cpu_a_function_runs_as_it_is_written(compiled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with compile_later():
        negative: Callable[[int], int] = torch.compile(lambda x: -x)
    assert (negative(2), compiled) == (-2, [])


def test_modules_and_what_comes_after_the_block_are_compiled_at_once(compiled: list[Any]) -> None:
    linear = nn.Linear(1, 1)
    with compile_later():
        torch.compile(linear)
    torch.compile(abs)
    assert [given for given, _ in compiled] == [linear, abs]


@pytest.mark.slow
def test_importing_the_loop_loads_no_compiler() -> None:
    """The import of the loop takes seconds, so it stands alone; it would be true in a process that compiled before."""
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.split() == ["False", "True"]
