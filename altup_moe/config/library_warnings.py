"""Warnings of libraries: known ones are dropped, a few others are a line each on rank 0, the rest is counted."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import TextIO

VARIABLE = "ALTUP_MOE_WARNINGS"
"""Set to ``all``, nothing is dropped, and every rank shows its own."""
SHOWN = 3
"""Warnings that are printed."""


@dataclass(frozen=True)
class Known:
    """A warning that says nothing of a run here.

    Args:
        module: regular expression of the module that warns. category: its class. reason: why it is dropped.
        message: regular expression of how its text begins.
    """

    module: str
    category: type[Warning]
    reason: str
    message: str = ""


KNOWN = (
    Known(r"megatron\.", UserWarning, "announces what it takes without Transformer Engine and apex, tested here"),
    *(
        Known("", FutureWarning, "Megatron calls it by its old name", rf"`torch\.distributed\.{name}` is deprecated")
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor")
    ),
)
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""What Python itself hides, unless -W or PYTHONWARNINGS asks for it: notes to the libraries' authors."""
KNOWN_LOGS = {"megatron": logging.ERROR}
"""Logger -> level below which it is silent: Megatron logs the same as it warns of."""
NO_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables: progress bars of transformers draw over each other, and fill logs."""


class LibraryWarnings:
    """While open, warnings are handled as this module says; at the end, what was not shown is counted in a line."""

    def __init__(self) -> None:
        self._all = os.environ.get(VARIABLE) == "all"
        self._first = os.environ.get("RANK", "0") == "0"
        self._count = 0
        self._seen: set[str] = set()
        self._outer = warnings.catch_warnings()

    def __enter__(self) -> LibraryWarnings:
        self._outer.__enter__()
        if self._all:
            return self
        for category in HIDDEN if not sys.warnoptions else ():
            warnings.simplefilter("ignore", category)
        for known in KNOWN:
            warnings.filterwarnings("ignore", known.message, known.category, known.module)
        for name, level in KNOWN_LOGS.items():
            logging.getLogger(name).setLevel(level)
        for name, value in NO_BARS.items():
            os.environ.setdefault(name, value)
        if loaded := sys.modules.get("transformers.utils.logging"):  # it has read the variables already
            loaded.disable_progress_bar()
        warnings.showwarning = self._show
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outer.__exit__(kind, error, trace)
        if self._first and self._count > SHOWN:
            more = self._count - SHOWN
            line = f"altup-moe: {more} further warning{'s' * (more > 1)} of libraries; {VARIABLE}=all shows them"
            print(line, file=sys.stderr, flush=True)

    def _show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        if text in self._seen:
            return
        self._seen.add(text)
        self._count += 1
        if self._first and self._count <= SHOWN:
            shown = f"altup-moe: warning: {text} ({category.__name__}, {filename}:{lineno})"
            print(shown, file=sys.stderr, flush=True)
