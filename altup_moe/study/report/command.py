"""`altup-moe study report DIR`: reads a study's rows, writes its page, pictures and tables, prints the headline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from altup_moe.config import ConfigError, UserError
from altup_moe.config.files import check_directory, write_bytes, write_text
from altup_moe.config.ranges import COUNT
from altup_moe.study.ladder.coordinates import read_coordinates
from altup_moe.study.records import StudyRow, read_rows
from altup_moe.study.report.formatting import report_lines
from altup_moe.study.report.options import REFERENCE, ReportOptions
from altup_moe.study.report.page import study_page
from altup_moe.study.report.pictures import pictures
from altup_moe.study.report.scaling import is_ladder, scaling
from altup_moe.study.report.scaling_pictures import scaling_pictures
from altup_moe.study.report.scaling_tables import scaling_dict, scaling_lines, scaling_tables
from altup_moe.study.report.summary import summarise, summary_dict
from altup_moe.study.report.tables import tables
from altup_moe.study.study_directory import ROWS, check_study

PAGE = "report.html"


def write_report(options: ReportOptions) -> int:
    """Compute, write and print. Returns the exit code 0.

    Raises:
        UserError: a family that no row has, rows that cannot be read, a directory that cannot be written.
    """
    check_study(options.directory)
    if options.out is not None:
        check_directory("out", options.out)
    COUNT.check("draws", options.draws)
    path = options.directory / ROWS
    rows = read_rows(path) if path.exists() else []
    if not rows:
        raise UserError(f"{path}: no rows yet; altup-moe study status {options.directory} says how far it is")
    _check_reference(options.reference, rows)
    coordinates = read_coordinates(options.directory)
    found = summarise([row for row in rows if row.role == "trained"], options.reference)
    # While a ladder tunes, it has no other rows.
    found = replace(found, studies=found.studies or (rows[0].study,))
    ladder = None
    if is_ladder(rows) or coordinates:
        ladder = scaling(rows, options.reference, shared=options.shared, draws=options.draws, coordinates=coordinates)
    out = options.out or options.directory / "report"
    texts, images = tables(found), dict(pictures(found))
    if ladder is not None:
        texts |= scaling_tables(ladder)
        images |= scaling_pictures(ladder)
    names = [*images, *texts]
    texts[PAGE] = study_page(found, ladder, _study(options.directory / "study.yaml"), names)
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
        of_ladder = {} if ladder is None else {"scaling": scaling_dict(ladder)}
        print(json.dumps({**summary_dict(found), **of_ladder, "files": written}, allow_nan=False))
    else:
        lines = [*report_lines(found), "", *([] if ladder is None else [*scaling_lines(ladder), ""])]
        print("\n".join([*lines, *(f"wrote {name}" for name in written)]))
    return 0


def _check_reference(reference: str, rows: Sequence[StudyRow]) -> None:
    """Raise ConfigError for a family that no row has; the default need not be there."""
    families = sorted({row.family for row in rows})
    if reference not in (REFERENCE, *families):
        raise ConfigError("reference", reference, f"no row is of this family; one of {', '.join(families)} would fit")


def _study(path: Path) -> str | None:
    """Text of study.yaml for the page; None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
