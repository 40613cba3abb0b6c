"""Regions: functions of tensors between matrix products, which run as they are written or as one compiled pass.

Between the products a layer is bound by memory: every operation of a chain reads and writes whole tensors, and one
compiled loop (torch.compile; C++ on a CPU, Triton on a GPU) reads and writes them once. A region is a pure function of
tensors, so that it can be compiled alone: nothing else of a step is traced, and hooks, exchanges and Megatron's modules
stay as they are. `train.compile` asks for it. (torchtitan and OLMo-core compile whole blocks under the same name.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def region(compiled: bool, function: Callable[..., Any], *args: Any) -> Any:
    """The function's result: of one compiled pass, or as it is written."""
    if not compiled:
        return function(*args)
    from altup_moe.device.compiled_functions import Asked, run_compiled

    return run_compiled(Asked("train.compile=true", "train.compile=false"), function, None, *args)
