"""The tables that programs may add rows to, as they were before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tables_kept() -> Iterator[None]:
    """What is registered inside is forgotten afterwards."""
    from altup_moe.altup.variants import VARIANTS
    from altup_moe.api import register
    from altup_moe.config import plugins
    from altup_moe.config.architectures import ARCHITECTURES
    from altup_moe.config.data_checks import ADDED_CORPORA
    from altup_moe.config.load import renew_names
    from altup_moe.config.model_schema import BACKEND_NAMES
    from altup_moe.data.corpora import CORPORA
    from altup_moe.data.recipes import OBJECTIVES
    from altup_moe.moe.backends import BACKENDS

    tables = (VARIANTS, ARCHITECTURES, CORPORA, OBJECTIVES, BACKENDS)
    before = [dict(table) for table in tables]
    names = list(BACKEND_NAMES)
    try:
        yield
    finally:
        for table, rows in zip(tables, before, strict=True):
            table.clear()
            table.update(rows)
        BACKEND_NAMES[:], ADDED_CORPORA[:] = names, []
        register._added.clear()
        plugins._loaded.clear()
        renew_names()
