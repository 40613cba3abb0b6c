"""`altup-moe study report DIR`: reads a study's rows, writes its page, pictures and tables, prints the headline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from altup_moe.config import ConfigError, UserError
from altup_moe.config.files import write_bytes, write_text
from altup_moe.config.flags import parse, print_help
from altup_moe.study.records import read_rows
from altup_moe.study.report.formatting import report_lines
from altup_moe.study.report.page import study_page
from altup_moe.study.report.pictures import pictures
from altup_moe.study.report.statistics import Bootstrap
from altup_moe.study.report.summary import summarise, summary_dict
from altup_moe.study.report.tables import tables

PAGE = "report.html"


@dataclass(frozen=True)
class ReportOptions:
    """The page of a study: quality against cost, speed at equal quality, loss curves, experts' load, what failed.

    Exit code 0; 2 for a value that cannot be or rows that cannot be read.
    """

    directory: Positional[Path]
    """A study's directory: rows.jsonl, and study.yaml if it is there."""
    out: Path | None = None
    """Directory for the files; DIRECTORY/report if not given."""
    reference: str = "dense"
    """Family whose curve gives the speed at equal quality."""
    bootstrap: int = 2000
    """Draws of an interval."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print one JSON object."""


def report_command(args: Sequence[str]) -> int:
    """Parse, compute, write, print. Returns the exit code 0.

    Raises:
        UserError: an option that cannot be, rows that cannot be read, a directory that cannot be written.
    """
    if "-h" in args or "--help" in args:
        print_help(ReportOptions, "altup-moe study report")
        return 0
    return write_report(parse(ReportOptions, args, positional="directory"))


def write_report(options: ReportOptions) -> int:
    """Compute, write and print what parsed options ask for; as `report_command`."""
    if options.bootstrap < 100:
        raise ConfigError("bootstrap", options.bootstrap, "100 or more would fit: the ends are 2.5 % of the draws")
    if options.seed < 0:
        raise ConfigError("seed", options.seed, "0 or more would fit")
    path = options.directory / "rows.jsonl"
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: no rows yet")
    found = summarise(rows, options.reference, Bootstrap(options.bootstrap, options.seed))
    out = options.out or options.directory / "report"
    texts, images = tables(found), dict(pictures(found))
    names = [*images, *texts]
    texts[PAGE] = study_page(found, _study(options.directory / "study.yaml"), names)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(out / name, text)
        for name, image in images.items():
            write_bytes(out / name, image)
    except OSError as error:
        raise UserError(f"{out}: {error.strerror or error}") from None
    written = [str(out / name) for name in (PAGE, *names)]
    if options.json:
        print(json.dumps({**summary_dict(found), "files": written}, allow_nan=False))
    else:
        print("\n".join([*report_lines(found), "", *(f"wrote {name}" for name in written)]))
    return 0


def _study(path: Path) -> str | None:
    """Text of study.yaml for the page; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
