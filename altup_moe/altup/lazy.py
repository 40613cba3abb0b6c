"""Objects that a table names as text, so that reading the table imports nothing heavy.

A row that a user's program adds (`altup_moe.api.register_variant`) may hold the object itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load_object(path: Any) -> Any:
    """The object of "module:name", whose module is imported; what is not text is the object itself."""
    if not isinstance(path, str):
        return path
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
