"""Imports of large libraries, without the garbage collector's visits to what they make."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Iterator[None]:
    """Around imports: nothing they make is garbage, and looking for some takes a fifth of the time to import torch.

    Afterwards what is there counts as old, and is looked at as rarely as other old objects.
    """
    if not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        # All objects go to the permanent generation, and from there to the oldest one.
        gc.freeze()
        gc.unfreeze()
        gc.enable()
