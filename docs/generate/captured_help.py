"""What a command's `--help` would show, as records: the options' dataclass, and the text of the other pages."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from altup_moe import cli
from altup_moe.config.command import Command
from altup_moe.config.keys import expects, field_hints
from docs.generate.configuration import spelled
from docs.generate.source import ROOT, fields


@dataclass(frozen=True)
class Option:
    """An option, or a word without a name. ``values`` and ``default`` in words; no default: it must be given."""

    name: str
    values: str
    default: str | None
    doc: str


@dataclass(frozen=True)
class Help:
    """``text``: what was printed before the options, or instead of them; ``summary``: what the options say of all."""

    text: str
    summary: str
    options: tuple[Option, ...]


class _Found(BaseException):
    """Ends a command where it would print its options."""

    def __init__(self, command: Command) -> None:
        super().__init__()
        self.command = command


def captured_help(words: Sequence[str]) -> Help:
    """The help of ``altup-moe WORDS --help``, without printing it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _capturing():
        try:
            cli.main([*words, "--help"])
        except _Found as found:
            return _of_command(found.command)
    return Help(printed.getvalue().strip("\n"), "", ())


def _capturing() -> contextlib.ExitStack:
    """Pages as wide as on a terminal of 100 columns; a command with options ends before it prints them."""

    def page(command: Command, topic: str = "") -> None:
        raise _Found(command)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.dict("os.environ", {"COLUMNS": "100"}))
    stack.enter_context(mock.patch.object(Command, "page", page))
    return stack


def _of_command(command: Command) -> Help:
    examples = "\n".join(command.examples)
    about = "\n\n".join(filter(None, [inspect.getdoc(command.options), inspect.cleandoc(command.more)]))
    return Help(examples, about, tuple(_of_record(command.options, command.positional)))


def _of_record(record: type, unnamed: Sequence[str]) -> Iterator[Option]:
    hints = field_hints(record)
    docs = {one.name: one.doc for base in reversed(record.__mro__[:-1]) for one in _fields(base)}
    for field in dataclasses.fields(record):
        if dataclasses.is_dataclass(typing.get_type_hints(record)[field.name]):
            continue
        default = None
        if field.default is not dataclasses.MISSING:
            default = spelled(field.default)
        name = field.name.upper() if field.name in unnamed else f"--{field.name.replace('_', '-')}"
        yield Option(name, expects(hints[field.name]).replace("one of ", ""), default, docs[field.name])


def _fields(record: type) -> list[Any]:
    return fields(Path(inspect.getfile(record)).resolve().relative_to(ROOT).as_posix(), record.__name__)
