"""What a command's `--help` would show, as records: the options' dataclass or parser, and the text before them."""

from __future__ import annotations

import argparse
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

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options


def captured_help(words: Sequence[str]) -> Help:
    """The help of ``altup-moe WORDS --help``, without printing it."""
    printed = io.StringIO()
    found: Any = None
    with contextlib.redirect_stdout(printed), _capturing():
        try:
            cli.main([*words, "--help"])
        except _Found as reached:
            found = reached.options
        except SystemExit:
            pass
    text = printed.getvalue().strip("\n")
    if isinstance(found, argparse.ArgumentParser):
        return Help(text, found.description or "", tuple(_of_parser(found)))
    if dataclasses.is_dataclass(found):
        return Help(text, inspect.getdoc(found) or "", tuple(_of_record(typing.cast(type, found))))
    return Help(text, "", ())


@contextlib.contextmanager
def _capturing() -> Iterator[None]:
    def cli_of_tyro(record: Any, args: Sequence[str] = (), **_: Any) -> None:
        raise _Found(_subcommand(record, args))

    def parse(parser: argparse.ArgumentParser, args: Sequence[str] | None = None, *_: Any) -> None:
        raise _Found(parser)

    with (
        mock.patch("tyro.cli", cli_of_tyro),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse),
    ):
        yield


def _subcommand(hint: Any, args: Sequence[str]) -> Any:
    """The record of a type that may be annotated; of a union of records, the one that is called as the first word."""
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[0]
    members = [_subcommand(member, ()) for member in typing.get_args(hint)]
    return next((member for member in members if args and member.__name__.lower() == args[0]), hint)


def _of_record(record: type) -> Iterator[Option]:
    hints = field_hints(record)
    docs = {one.name: one.doc for base in reversed(record.__mro__[:-1]) for one in _fields(base)}
    for field in dataclasses.fields(record):
        if dataclasses.is_dataclass(typing.get_type_hints(record)[field.name]):
            continue
        positional = "Positional" in str(field.type)
        default = None
        if field.default is not dataclasses.MISSING:
            default = spelled(field.default)
        name = field.name.upper() if positional else f"--{field.name.replace('_', '-')}"
        yield Option(name, expects(hints[field.name]).replace("one of ", ""), default, docs[field.name])


def _fields(record: type) -> list[Any]:
    return fields(Path(inspect.getfile(record)).resolve().relative_to(ROOT).as_posix(), record.__name__)


def _of_parser(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest).upper()
        words = ", ".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest).upper()
        default = None if action.default in (None, argparse.SUPPRESS) else str(action.default)
        yield Option(name, "" if action.nargs == 0 else words, default or "", (action.help or "") % vars(action))
