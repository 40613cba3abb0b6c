"""Show a running study: as a table that is redrawn on a terminal, elsewhere as one line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

from altup_moe.study.progress import RowPhase, RowState, Snapshot

EVERY_SECONDS = 1.0


class LiveTable:
    """Context manager that shows a study."""

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
        """Print one line about an event."""
        if self._live is not None:
            self._live.console.print(line, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    @property
    def due(self) -> bool:
        """Whether it is time to draw the table again (once a second, since a snapshot reads files)."""
        return self._live is not None and time.monotonic() >= self._next

    def show(self, snapshot: Snapshot) -> None:
        """Draw the table."""
        if self._live is not None:
            self._next = time.monotonic() + EVERY_SECONDS
            # Rows that wait or are done are left out: they would not fit on a screen.
            self._live.update(study_table(self.name, snapshot, ("training", "requeued", "queued", "failed")))


def cells(each: RowState) -> tuple[str, str, str, str, str]:
    """Cells of a row of the table: name, seed, state, steps, training loss."""
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
    """Build a `rich` table of the rows in some states, with a summary of all rows below it."""
    from rich.table import Table

    found = Table(title=name, caption=snapshot.summary())
    for column in ("row", "seed", "state", "steps", "train loss"):
        found.add_column(column, justify="right" if column in ("seed", "steps", "train loss") else "left")
    for each in snapshot.states:
        if each.state in states:
            found.add_row(*cells(each))
    return found
