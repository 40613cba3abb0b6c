"""Import Megatron without torch's compiler: its decorators load the compiler at the import, a fifth of a rank's start.

Megatron-core decorates some ten functions with `torch.compile`. A run calls few of them. On a CPU they run as they are
written: they are a few operations each, the compiler takes a second or more of each rank, and needs one for C++.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from altup_moe.parallel.patches import COMPILE, original, replace


@contextmanager
def compile_later() -> Iterator[None]:
    """Functions decorated in this block with `torch.compile` are compiled by their first call, on a CPU not at all."""
    compile_now = original(COMPILE)

    def decorate(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda given: decorate(given, **options)
        if isinstance(function, type) or not hasattr(function, "__code__"):
            return compile_now(function, **options)  # a module keeps its methods

        @functools.cache
        def chosen() -> Callable[..., Any]:
            import torch  # a mistake in a command line is told without it

            return compile_now(function, **options) if torch.cuda.is_available() else function

        @functools.wraps(function)
        def at_first_call(*args: Any, **kwargs: Any) -> Any:
            return chosen()(*args, **kwargs)

        return at_first_call

    replace(COMPILE, decorate)
    try:
        yield
    finally:
        replace(COMPILE, compile_now)
