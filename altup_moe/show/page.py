"""The page of runs: one HTML file with its data, style and script inside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files

from altup_moe.report.page import page
from altup_moe.show.curves import drawn_metrics, run_data
from altup_moe.show.events import events
from altup_moe.show.headline import Headline
from altup_moe.show.page_text import page_text
from altup_moe.show.read_run import RunFiles


def runs_page(runs: Sequence[RunFiles], found: Sequence[Headline]) -> str:
    """The HTML of runs and their headlines."""
    metrics = drawn_metrics(runs)
    data = [run_data(run, one.name, i, metrics) for i, (run, one) in enumerate(zip(runs, found, strict=True))]
    body = page_text(
        runs,
        found,
        [events(run) for run in runs],
        metrics,
        routed=[i for i, one in enumerate(data) if one["routing"]],
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    charts = [{"key": m.key, "label": m.label, "roof": m.roof} for m in metrics]
    script = (files("altup_moe.show") / "page.js").read_text(encoding="utf-8")
    title = f"{', '.join(one.name for one in found)}: run{'s' * (len(found) > 1)}"
    return page(title, body, {"charts": charts, "runs": data}, script)
