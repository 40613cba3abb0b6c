"""Designs of a ladder beside each other, size by size: at equal steps, and the one's longer runs beside the other's.

A seed is one draw for both: the same initial weights where both have a tensor, and the same data in the same order, of
which the longer run reads more. So all comparisons are in pairs, seed by seed (a paired t-test).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from altup_moe.study.ladder.law import SIZE
from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import adjusted_p
from altup_moe.study.report.formatting import interval_text
from altup_moe.study.report.intervals import LEVEL, Estimate, difference
from altup_moe.study.report.models import Interval
from docs.generate.markdown import table

Losses = Mapping[int, float]
"""Held-out loss by seed."""
Pairs = Mapping[str, tuple[str, str]]
"""Design -> the families that are compared, ours and theirs."""
DELAYED = {
    "plain": ("plain-delayed", "plain"),
    "K = 2": ("k2-delayed", "k2"),
    "K = 4": ("k4-delayed", "k4"),
    "K = 2, wide tables": ("k2-wide-delayed", "k2-wide"),
    "K = 4, wide tables": ("k4-wide-delayed", "k4-wide"),
}
"""Design of study `delayed` -> its families with delayed outputs and without."""
OTHER_STEP_TIME = ("plain",)
"""Designs around branches, whose delayed step takes 0.85 to 0.92 of the other (docs/concepts/delayed.md): at equal
seconds they are not compared."""


@dataclass(frozen=True)
class Column:
    """What is compared. ``ours``, ``theirs``: training tokens of both. ``without``: designs that it leaves out."""

    title: str
    ours: int
    theirs: int
    without: tuple[str, ...] = ()

    def designs(self, pairs: Pairs) -> Pairs:
        """Those that are compared."""
        return {name: pair for name, pair in pairs.items() if name not in self.without}


def delayed_columns(rows: Iterable[StudyRow]) -> list[Column]:
    """Equal steps, twice, and equal seconds where a delayed step takes as much less as its run is longer."""
    few, many = sorted({row.tokens for row in rows if row.tokens is not None})
    steps = {row.tokens: row.steps for row in rows}
    return [
        Column(f"equal steps, {steps[few]}", few, few),
        Column(f"equal steps, {steps[many]}", many, many),
        Column(f"equal seconds, {steps[many]} against {steps[few]}", many, few, OTHER_STEP_TIME),
    ]


def pair_tables(rows: Sequence[StudyRow], pairs: Pairs, columns: Sequence[Column]) -> list[str]:
    """Lines of two tables: every design at every size, and the mean over the designs of a column, seed by seed.

    p is adjusted by Holm among the cells of a column of a table.
    """
    sizes = sorted({row.overrides[SIZE] for row in rows})
    single = [(size, name, {name: pair}) for size in sizes for name, pair in pairs.items()]
    together = [(size, "mean", pairs) for size in sizes]
    return [*_table(rows, single, columns), "", *_table(rows, together, columns)]


def longer_text(rows: Sequence[StudyRow], pairs: Pairs, column: Column) -> str:
    """What more tokens alone do: their designs with our tokens less the same with theirs, the mean over the designs."""
    sizes = sorted({row.overrides[SIZE] for row in rows})
    same = [(theirs, theirs) for _, theirs in column.designs(pairs).values()]
    gaps = [f"{float(_gap(rows, size, same, column).value):+.3f} at width {size}" for size in sizes]
    return f"The longer runs alone, without delayed outputs, mean of {len(same)} designs: {', '.join(gaps)}."


def _table(rows: Sequence[StudyRow], lines: Sequence[tuple[int, str, Pairs]], columns: Sequence[Column]) -> list[str]:
    cells = [[_cell(rows, size, column.designs(pairs), column) for size, _, pairs in lines] for column in columns]
    shown = [_texts(column) for column in cells]
    seeds = [str(len(_of(rows, size, next(iter(pairs.values()))[0], columns[0].ours))) for size, _, pairs in lines]
    head = ["width", "design", "seeds", *(column.title for column in columns)]
    found = [[str(size), name, seeds[n], *(column[n] for column in shown)] for n, (size, name, _) in enumerate(lines)]
    return table(head, found, right=(0, 2))


def _of(rows: Iterable[StudyRow], size: int, family: str, tokens: int) -> Losses:
    return {
        row.seed: row.quality.valid_loss
        for row in rows
        if (row.overrides[SIZE], row.family, row.tokens) == (size, family, tokens) and row.quality is not None
    }


def _cell(rows: Sequence[StudyRow], size: int, pairs: Pairs, column: Column) -> Estimate | None:
    """None where a column compares none of the designs."""
    return _gap(rows, size, list(pairs.values()), column) if pairs else None


def _gap(rows: Sequence[StudyRow], size: int, pairs: Sequence[tuple[str, str]], column: Column) -> Estimate:
    """Our loss less theirs, averaged over the pairs, in pairs of seeds."""
    ours = [_of(rows, size, mine, column.ours) for mine, _ in pairs]
    theirs = [_of(rows, size, other, column.theirs) for _, other in pairs]
    seeds = sorted(set.intersection(*(set(losses) for losses in (*ours, *theirs))))
    mine, others = (np.mean([[losses[s] for s in seeds] for losses in each], axis=0) for each in (ours, theirs))
    return difference(mine, others, paired=True)


def _texts(found: Sequence[Estimate | None]) -> list[str]:
    """A column: differences, intervals and adjusted p; bold where a difference is told apart."""
    adjusted = adjusted_p([None if one is None else float(one.p) for one in found])
    texts = []
    for one, p in zip(found, adjusted, strict=True):
        if one is None or p is None:
            texts.append("-")
            continue
        interval = interval_text(Interval(float(one.low), float(one.high)), 3, "+")
        shown = "p < 0.001" if p < 0.001 else f"p {p:.2g}"
        text = f"{float(one.value):+.3f} {interval}, {shown}"
        texts.append(f"**{text}**" if p < LEVEL else text)
    return texts
