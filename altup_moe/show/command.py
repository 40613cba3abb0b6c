"""Write the page of runs, and print their headline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from tyro.conf import Positional

from altup_moe.config import ConfigError, UserError
from altup_moe.config.files import write_text
from altup_moe.config.run_directory import report_file
from altup_moe.report.page import page
from altup_moe.show.curves import drawn_metrics, run_data
from altup_moe.show.events import events
from altup_moe.show.headline import Headline, headline, lines_of
from altup_moe.show.page_text import page_text
from altup_moe.show.read_run import RunFiles, read_run, short_names

MOST = 42
"""Runs of a page: more would share colour and dash."""


@dataclass(frozen=True)
class ShowOptions:
    """One page of a run, or of several beside each other: curves, routing, history, configuration. No network.

    Also while the run trains. Exit code 0; 2 for a directory that is no run, or a page that cannot be written.
    """

    runs: Positional[tuple[Path, ...]]
    """Run directories (log.run_dir)."""
    output: Path | None = None
    """File of the page; None is RUN/report.html, of several runs FIRST_RUN/comparison.html."""
    json: bool = False
    """Print the headline's figures as one JSON object instead of text."""


def show(options: ShowOptions) -> int:
    """Read, write, print. Returns the exit code 0.

    Raises:
        UserError: a directory is no run, or the page cannot be written.
    """
    if not 1 <= len(options.runs) <= MOST:
        raise UserError(f"show: name 1 to {MOST} run directories, as in altup-moe show runs/default")
    names = short_names(options.runs)
    if len({path.resolve() for path in options.runs}) < len(options.runs):
        raise ConfigError("runs", " ".join(map(str, options.runs)), "names a run twice")
    runs = [read_run(path) for path in options.runs]
    output = options.output or report_file(options.runs[0], len(runs))
    found = [headline(run, name) for run, name in zip(runs, names, strict=True)]
    text = _page(runs, found)
    try:
        write_text(output, text)
    except OSError as error:
        raise ConfigError("output", str(output), f"cannot be written: {error.strerror or error}") from None
    if options.json:
        print(json.dumps({"page": str(output), "runs": [asdict(one) for one in found]}, allow_nan=False))
    else:
        print("\n".join([*(line for one in found for line in lines_of(one)), f"wrote {output}"]))
    return 0


def _page(runs: Sequence[RunFiles], found: Sequence[Headline]) -> str:
    names = [one.name for one in found]
    metrics = drawn_metrics(runs)
    data = [run_data(run, name, i, metrics) for i, (run, name) in enumerate(zip(runs, names, strict=True))]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = page_text(
        runs,
        found,
        [events(run) for run in runs],
        metrics,
        [i for i, one in enumerate(data) if one["routing"]],
        written,
    )
    charts = [{"key": m.key, "label": m.label, "roof": m.roof} for m in metrics]
    script = (files("altup_moe.show") / "page.js").read_text(encoding="utf-8")
    title = f"{names[0]}: run" if len(names) == 1 else f"{', '.join(names)}: runs"
    return page(title, body, {"charts": charts, "runs": data}, script)
