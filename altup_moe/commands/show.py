"""`altup-moe show`: write the page of runs, and print their headline."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from altup_moe.config import ConfigError
from altup_moe.config.command import Command
from altup_moe.config.files import write_text
from altup_moe.config.run_directory import comparison_file, report_file
from altup_moe.show.headline import headline, lines_of
from altup_moe.show.page import runs_page
from altup_moe.show.read_run import read_run, short_names

MOST = 42
"""Runs of a page: more would share colour and dash."""


@dataclass(frozen=True)
class ShowOptions:
    """One page of a run, or of several beside each other: curves, routing, history, configuration. No network.

    Also while the run trains. Exit code 0; 2 for a directory that is no run, or a page that cannot be written.
    """

    runs: tuple[Path, ...]
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
    if len(options.runs) > MOST:
        raise ConfigError("runs", len(options.runs), f"at most {MOST} would fit on a page")
    if len({path.resolve() for path in options.runs}) < len(options.runs):
        raise ConfigError("runs", " ".join(map(str, options.runs)), "names a run twice")
    runs = [read_run(path) for path in options.runs]
    names = short_names(options.runs)
    found = [headline(run, name) for run, name in zip(runs, names, strict=True)]
    output = options.output or (comparison_file if len(runs) > 1 else report_file)(options.runs[0])
    try:
        write_text(output, runs_page(runs, found))
    except OSError as error:
        raise ConfigError("output", str(output), f"cannot be written ({error.strerror or error})") from None
    if options.json:
        print(json.dumps({"page": str(output), "runs": [asdict(one) for one in found]}, allow_nan=False))
    else:
        print("\n".join([*(line for one in found for line in lines_of(one)), f"wrote {output}"]))
    return 0


SHOW = Command(
    "show",
    "RUN_DIR [RUN_DIR ...] [options]",
    ["altup-moe show runs/quickstart", "altup-moe show runs/a runs/b --output both.html"],
    ShowOptions,
    show,
    positional=["runs"],
)
main = SHOW.main
