"""The page of the configuration: every section and key, from the dataclasses and the tables beside them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from altup_moe.config.keys import expects, field_hints
from altup_moe.config.ranges import RANGES
from altup_moe.config.resume_keys import KEY_CLASSES, KeyClass
from altup_moe.config.schema import RunConfig
from docs.generate.markdown import cell, docstring, table, text_of
from docs.generate.source import ROOT, fields

CLASSES: dict[KeyClass, str] = {
    "model": "Another value is another model. Refused, also for a new run that takes over weights "
    "(`checkpoint.initial_load_path`).",
    "run": "Another value is another run: its samples, its precision. Refused on resume; a new run may choose.",
    "recorded": "The run goes on differently. One line says so at the start; `metrics.jsonl` and the checkpoint's "
    "manifest record it.",
    "free": "Nothing that is computed changes, beyond rounding and dropout's masks.",
}


def page() -> str:
    """The page's text."""
    return text_of(
        [
            "# Configuration",
            "",
            "A configuration is a YAML file of sections. A key that it leaves out has the default given here.",
            "`--section.key VALUE` on the command line comes last and wins. An unknown key or a value out of range is",
            "one line and exit code 2, before anything starts. The run's directory keeps the resolved file as",
            "`config.yaml`. The text is that of the dataclasses in `altup_moe/config/schema.py` and",
            "`altup_moe/config/model_schema.py`.",
            "",
            "An editor completes keys and marks mistakes while you type: `altup-moe configs --schema >",
            "altup_moe.schema.json` writes the JSON schema of all these files, and the first line",
            "`# yaml-language-server: $schema=altup_moe.schema.json` of a file tells VS Code's YAML extension, and",
            "others that use the same server, where it lies. In a checkout `.vscode/settings.json` does so for "
            "`configs/`.",
            "",
            "**On resume** says what happens when a run goes on from its checkpoint with another value:",
            "",
            *table(["class", "another value"], [[f"`{name}`", text] for name, text in CLASSES.items()]),
            *(line for section in dataclasses.fields(RunConfig) for line in _section(section)),
        ]
    )


def _section(field: dataclasses.Field[Any]) -> Iterator[str]:
    record = typing.get_type_hints(RunConfig)[field.name]
    docs = {one.name: one.doc for one in fields(_file(record), record.__name__)}
    hints = field_hints(record)
    yield from ("", f"## {field.name}", "", docstring(inspect.getdoc(record)), "")
    rows = []
    for one in dataclasses.fields(record):
        key = f"{field.name}.{one.name}"
        rows.append(
            [
                f'<a id="{key}"></a>`{one.name}`',
                values_of(key, hints[one.name]),
                f"`{spelled(one.default)}`",
                f"`{KEY_CLASSES[key]}`",
                cell(docstring(docs[one.name])),
            ]
        )
    yield from table(["key", "values", "default", "on resume", "what it is"], rows)


def values_of(key: str, hint: Any) -> str:
    """The values that a key takes, in words: its type, and its range or choices."""
    text = expects(hint).replace("one of ", "")
    if key in RANGES:
        number, _, null = text.partition(" or ")
        text = f"{number}, {str(RANGES[key]).removeprefix('must ').removeprefix('be ').replace('lie in', 'in')}"
        text += f", or {null}" if null else ""
    return cell(text)


def spelled(value: Any) -> str:
    """A default as YAML spells it."""
    match value:
        case float():
            return f"{value:g}"
        case tuple():
            return json.dumps(list(value))
        case bool() | None:
            return json.dumps(value)
    return str(value)


def _file(record: type) -> str:
    return Path(inspect.getfile(record)).resolve().relative_to(ROOT).as_posix()
