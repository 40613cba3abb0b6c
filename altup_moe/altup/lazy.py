"""Objects that a table names as text, so that reading the table imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_object(path: str) -> Any:
    """The object of "module:name"; imports its module."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
