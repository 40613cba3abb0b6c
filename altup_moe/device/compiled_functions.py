"""Functions of tensors as torch.compile makes them, at their first call. Imported where asked for: it takes 1.5 s.

Whoever asks says by which key (`Asked`), so that a machine without a compiler is told what to set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException


@dataclass(frozen=True)
class Asked:
    """What asks for compiled code, and what needs no compiler, each as KEY=VALUE."""

    setting: str
    instead: str


_COMPILED: dict[Callable[..., Any], Callable[..., Any]] = {}
_LIMIT = 256
"""Compilations of one function: shapes, dtypes, threads. Dynamo's own limit of 8 is soon reached by tests."""


def compiled_often(function: Callable[..., Any], **how: Any) -> Callable[..., Any]:
    """torch.compile, for more shapes and dtypes than dynamo allows one function. ``how``: its arguments."""
    # As an argument of torch.compile the limit is not known to torch 2.11.
    compiled: Callable[..., Any] = torch._dynamo.config.patch(recompile_limit=_LIMIT)(torch.compile(function, **how))
    return compiled


def run_compiled(asked: Asked, function: Callable[..., Any], options: dict[str, Any] | None, *args: Any) -> Any:
    """The function's result, compiled at its first call for such arguments. A function always has the same options.

    Raises:
        RuntimeError: there is no compiler, with the key that asked for one.
    """
    if function not in _COMPILED:
        _COMPILED[function] = compiled_often(function, fullgraph=True, options=options)
    try:
        return _COMPILED[function](*args)
    except TorchDynamoException as error:
        raise compiler_failed(asked, error) from error


def compiler_failed(asked: Asked, error: Exception) -> RuntimeError:
    """What a user is told where nothing can be compiled."""
    return RuntimeError(
        f"{asked.setting}: torch.compile failed, as it does where there is no C++ compiler (g++, or what CXX "
        f"names); {asked.instead} needs none. It said: {str(error).strip().splitlines()[0]}"
    )
