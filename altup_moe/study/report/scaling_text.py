"""The text of a ladder's part of the page: what each figure shows, its law's tables, places for the script."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from html import escape

from altup_moe.report.formatting import count
from altup_moe.report.page import legend, table
from altup_moe.study.ladder.law import LadderLaw
from altup_moe.study.ladder.law_text import (
    LAW,
    TRANSFER,
    Rows,
    failed_lines,
    held_out_note,
    held_out_rows,
    law_rows,
    multiplier_note,
    multiplier_rows,
    taken_text,
    transfer_rows,
    tuning_rows,
)
from altup_moe.study.ladder.transfer import transfers
from altup_moe.study.report.scaling import Scaling, figures
from altup_moe.study.report.scaling_data import by_size
from altup_moe.study.scaling.bootstrap import LEVEL
from altup_moe.study.scaling.curves import NEAR


def scaling_text(found: Scaling) -> Iterator[str]:
    """HTML of the part."""
    yield "<h2>Scaling</h2>"
    if found.law is None:
        yield f'<p class="notes">No law is fitted: {escape(found.no_law)}</p>'
    else:
        yield from _law(found.law)
    notes = [f"{family} is not tuned: {why}" for family, why in found.measured.untuned.items()]
    notes += failed_lines(found.measured)
    if notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"
    shown = figures(found)
    yield from _losses(found, shown)
    if found.law is not None and "multipliers" in shown:
        yield "<h3>Multipliers</h3>"
        yield _soft(
            f"{_capital(multiplier_note(found.law))}. Above 1, {found.law.reference} needs more. "
            f"Lines: {LEVEL:.0%} interval."
        )
        yield f'<div class="chart" id="multipliers"></div>{_elsewhere("multipliers")}'
        yield _table(multiplier_rows(found.law))
    if "isoflop" in shown:
        yield from _slices(found)
    if "tuning" in shown:
        yield from _tuning(found)
    if "coordinates" in shown:
        yield from _coordinates(found)


def _law(law: LadderLaw) -> Iterator[str]:
    yield f"<p>{escape(LAW)}.</p>"
    yield _table(law_rows(law))
    yield from (f'<p class="notes">{escape(note)}</p>' for note in law.draws.fit.notes)


def _losses(found: Scaling, shown: Collection[str]) -> Iterator[str]:
    lines = (
        " Lines: the fitted law's loss at the best size for that cost, dashed where that size or its tokens lie "
        f"beyond what was trained; bands: {LEVEL:.0%} interval."
        if found.law is not None
        else ""
    )
    held = (
        " Hollow: the largest size, which the law of the others predicts: the bar beside it with its interval."
        if found.law is not None and found.law.predictions
        else " Hollow: the largest size."
    )
    marks = f"Marks: means over seeds of a size and a number of tokens; dots: single seeds.{lines}{held}"
    if "flops" in shown:
        yield "<h3>Loss against FLOPs</h3>"
        yield _soft(marks)
        yield from _chart("flops")
    if found.law is not None:
        yield from _held_out(found.law)
    if "seconds" in shown:
        yield "<h3>Loss against seconds</h3>"
        yield _soft(
            f"{'As above.' if 'flops' in shown else marks} "
            "Seconds: the measured median time of a step, times the steps."
        )
        yield from _chart("seconds")


def _held_out(law: LadderLaw) -> Iterator[str]:
    yield "<h3>The largest size, held out</h3>"
    if not law.predictions:
        yield f"<p>{escape(_capital(held_out_note(law)))}</p>"
        return
    yield f"<p><b>{escape(held_out_words(law))}</b></p>"
    yield _soft(
        f"Each family's largest size is left out, and the law of the others predicts it. Lines: {LEVEL:.0%} interval "
        "of the prediction for a mean of as many seeds; marks: the measured means. Cells of one size share their "
        "runs, so they are no independent answers."
    )
    yield f'<div class="chart" id="held-out"></div>{_elsewhere("held_out")}'
    yield f"<details><summary>Predictions</summary>{_table(held_out_rows(law))}</details>"


def held_out_words(law: LadderLaw) -> str:
    """How many of the held-out cells lie inside their interval, and which do not."""
    outside = [one for one in law.predictions if not one.inside]
    said = f"{len(law.predictions) - len(outside)} of {len(law.predictions)} measured means lie inside the interval"
    if not outside:
        return f"{said}."
    return f"{said}; outside: {', '.join(f'{one.family} at {count(one.d)} tokens' for one in outside)}."


def _slices(found: Scaling) -> Iterator[str]:
    yield "<h3>Equal FLOPs, other sizes</h3>"
    yield _soft(
        "The law's loss over active parameters without tables, with as many tokens as the FLOPs buy; dashed where "
        f"those are fewer or more than any run had; bands: {LEVEL:.0%} interval. Marks: runs within {NEAR:g} times the "
        "FLOPs, either way; each says how near."
    )
    yield legend("slices")
    inside = (f'<div class="chart" id="slice-{i}"></div>' for i in range(len(found.slices)))
    yield f'<div class="charts">{"".join(inside)}</div>{_elsewhere("isoflop")}'


def _tuning(found: Scaling) -> Iterator[str]:
    yield "<h3>Tuning</h3>"
    yield _soft(
        "Held-out loss of every try, on the fewest tokens and the first seed. The strip at the bottom: the value that "
        "was taken, hollow where it is the last one that was tried (edge). Crosses at the top: a try that failed, or "
        "whose loss is far above."
    )
    yield legend("tuning")
    parts = []
    for i, (size, own) in enumerate(by_size(found).items()):
        taken = "; ".join(f"{one.family} {taken_text(one)}" for one in own)
        said = f'<p class="soft"><small>taken: {escape(taken)}</small></p>'
        parts.append(f'<div><h3>size {size}</h3>{said}<div class="chart" id="tuning-{i}"></div></div>')
    yield f'<div class="charts">{"".join(parts)}</div>{_elsewhere("tuning")}'
    tries = _table(tuning_rows(found.measured.tuned), text=(1, 2, 3, 4))
    yield f"<details><summary>Every try</summary>{tries}</details>"
    if moved := list(transfers(found.measured.tuned)):
        yield _soft(f"{TRANSFER[:1].upper()}{TRANSFER[1:]}.")
        yield _table(transfer_rows(moved), text=(1, 4))


def _coordinates(found: Scaling) -> Iterator[str]:
    yield "<h3>Coordinate check</h3>"
    yield _soft(
        "Root mean square of what parts of the model give, by width, after the last step. Flat: the width does not "
        "change it. The tooltip has the power of the width with which a line grows."
    )
    yield legend("coordinates")
    parts = []
    for i, panel in enumerate(found.coordinates):
        head = f"{panel.family}, {panel.parametrization}, step {panel.step}"
        left = f"; {panel.left_out} value(s) that are 0 or not finite are left out" if panel.left_out else ""
        parts.append(f'<div><h3>{escape(head + left)}</h3><div class="chart" id="coordinates-{i}"></div></div>')
    yield f'<div class="charts">{"".join(parts)}</div>{_elsewhere("coordinates")}'


def _chart(name: str) -> Iterator[str]:
    yield f'{legend(name)}<div class="chart" id="{name}"></div>{_elsewhere(name)}'


def _elsewhere(name: str) -> str:
    return f"<noscript>The same figure is in scaling_{name}.svg.</noscript>"


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(rows: Rows, text: Iterable[int] = ()) -> str:
    heads, *cells = rows
    return table(heads, [[escape(cell) for cell in row] for row in cells], text=tuple(text))
