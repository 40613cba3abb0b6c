"""The generated pages: path below docs/ -> the function that makes its text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from altup_moe.commands.configs import schema_text
from altup_moe.commands.file_schema import file_schema
from altup_moe.config.shipped import SCHEMA_FILE
from altup_moe.parallel import patches
from docs.generate import command_line, configuration, exit_codes, ladders, metrics, run_directory, studies

DOCS = Path(__file__).parents[1]
COMMAND = "python -m docs.generate"

PAGES: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration.page,
    "reference/command_line.md": command_line.page,
    "reference/metrics.md": metrics.page,
    "reference/exit_codes.md": exit_codes.page,
    "reference/run_directory.md": run_directory.page,
    "results/studies.md": studies.page,
    "results/ladders.md": ladders.page,
    "developing/patches.md": patches.as_markdown,
    # No page: the schema that editors read, shipped with the configurations.
    f"../configs/{SCHEMA_FILE}": lambda: schema_text(file_schema()),
}

PICTURES: dict[str, Path] = studies.PICTURES | ladders.PICTURES
"""Path below docs/ -> the committed file that it is a copy of."""


def contents() -> dict[str, bytes]:
    """Path below docs/ -> what it must hold, of every generated file."""
    made = {path: make().encode() for path, make in PAGES.items()}
    return made | {path: source.read_bytes() for path, source in PICTURES.items()}


def differing() -> dict[str, bytes]:
    """Those of `contents` that the files in docs/ do not hold."""
    return {path: text for path, text in contents().items() if _held(DOCS / path) != text}


def _held(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
