"""Import Megatron without torch's compiler: its decorators load the compiler at the import, a fifth of a rank's start.

Megatron-core decorates some ten functions with `torch.compile`. A run calls few of them or none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from altup_moe.parallel.patches import COMPILE, original, replace


@contextmanager
def compile_later() -> Iterator[None]:
    """Functions that are decorated in this block with `torch.compile` are compiled by their first call."""
    compile_now = original(COMPILE)

    def decorate(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return lambda given: decorate(given, **options)
        if isinstance(function, type) or not hasattr(function, "__code__"):
            return compile_now(function, **options)  # a module keeps its methods

        compiled = functools.cache(lambda: compile_now(function, **options))

        @functools.wraps(function)
        def at_first_call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return at_first_call

    replace(COMPILE, decorate)
    try:
        yield
    finally:
        replace(COMPILE, compile_now)
