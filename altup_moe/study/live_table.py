"""What a running study shows: a live table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

from altup_moe.study.progress import RowPhase, RowState, Snapshot

EVERY_SECONDS = 1.0


class LiveTable:
    """Shows a study while it is entered."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._live: Any = None
        self._next = 0.0

    def __enter__(self) -> LiveTable:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """One event."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    @property
    def due(self) -> bool:
        """Whether the table is to be drawn again: it looks at files, so not all the time."""
        return self._live is not None and time.monotonic() >= self._next

    def show(self, snapshot: Snapshot) -> None:
        """Draw the table."""
        if self._live is not None:
            self._next = time.monotonic() + EVERY_SECONDS
            # Those that wait or are done would not fit on a screen.
            self._live.update(study_table(self.name, snapshot, ("training", "failed")))


def cells(each: RowState) -> tuple[str, str, str, str, str]:
    """A row of the table: name, seed, state, steps, loss."""
    steps = str(each.steps) if each.row.budget.seconds else f"{each.steps}/{each.row.config.train.steps}"
    loss = "" if each.loss is None else f"{each.loss:.4f}"
    return (
        each.row.name,
        str(each.row.seed),
        each.state if each.state != "waiting" else "",
        steps if each.steps else "",
        loss,
    )


def study_table(name: str, snapshot: Snapshot, states: Sequence[RowPhase] = get_args(RowPhase)) -> Any:
    """Rows in some states, as a `rich` table with the summary of all below."""
    from rich.table import Table

    found = Table(title=name, caption=snapshot.summary())
    for column in ("row", "seed", "state", "steps", "loss"):
        found.add_column(column, justify="right" if column in ("seed", "steps", "loss") else "left")
    for each in snapshot.states:
        if each.state in states:
            found.add_row(*cells(each))
    return found
