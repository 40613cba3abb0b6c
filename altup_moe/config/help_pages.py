"""Help pages of commands: an example, the usage, and every option with its docstring, unit and default."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from altup_moe.config.errors import UserError
from altup_moe.config.keys import alternatives, field_hints, nearest_key

WIDEST = 120
"""Characters of a line at most, also on a wider terminal."""
PLACEHOLDERS = {int: "N", float: "X", str: "TEXT", Path: "PATH", bool: ""}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option on a page: how it is written, what it does, its default (None is not shown)."""

    written: str
    text: str
    default: object

    @property
    def turns_off(self) -> bool:
        """Whether it is `--no-NAME`, of a boolean that is on by default."""
        return self.written.startswith("--no-") and self.default is True

    @property
    def described(self) -> str:
        """What it does; of an option that turns off, what is then left out."""
        return f"Leave out: {self.text}" if self.turns_off else self.text

    def line(self, whole: bool) -> str:
        """What stands beside it: the first sentence or the whole text, then the default."""
        text = self.described if whole else first_sentence(self.described)
        hidden = self.turns_off or self.default is None or self.default is False or self.default == ()
        shown = {True: "on"}.get(self.default, self.default) if isinstance(self.default, bool) else self.default
        if isinstance(shown, tuple):
            shown = " ".join(map(str, shown))
        return text if hidden or shown == "" else f"{text} (default: {shown})"


def help_topic(args: Sequence[str]) -> str | None:
    """The word after `--help`, "" if none follows; None if no help is asked for."""
    for number, word in enumerate(args):
        if word in ("-h", "--help"):
            following = args[number + 1 : number + 2]
            return following[0] if following and not following[0].startswith("-") else ""
    return None


@cache
def field_docs(record: type) -> dict[str, str]:
    """Docstring of every leaf field by dotted key, in one line each: the string that follows it in its class."""
    hints = typing.get_type_hints(record)
    docs: dict[str, str] = {}
    for name, text in _own_docs(record).items():
        if isinstance(hints.get(name), type) and dataclasses.is_dataclass(hints[name]):
            continue
        docs[name] = text
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            docs |= {f"{field.name}.{key}": text for key, text in field_docs(hint).items()}
    return docs


def _own_docs(record: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for before, node in zip(tree.body, tree.body[1:], strict=False):
        match before, node:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                docs[name] = " ".join(text.split())
    return docs


def first_sentence(text: str) -> str:
    """A text up to its first full stop that ends a sentence."""
    return re.split(r"(?<=[^.\d][.])\s+(?=[A-Z])", text, maxsplit=1)[0]


def options_of(record: type, default: Any = None, leave_out: Sequence[str] = (), section: str = "") -> list[Option]:
    """The options of a record.

    Args:
        default: a record whose values are the defaults; None takes the fields' own.
        leave_out: fields that are given without a name.
        section: only the keys of this section.
    """
    docs = field_docs(record)
    return [
        Option(_written(key, hint, value := _default(record, default, key)), docs.get(key, ""), value)
        for key, hint in field_hints(record).items()
        if key not in leave_out and key.startswith(f"{section}." if section else "")
    ]


def _default(record: type, default: Any, key: str) -> object:
    value = default
    if value is None and "." in key:
        value = record()
    if value is not None:
        for part in key.split("."):
            value = getattr(value, part)
        return value
    (field,) = (field for field in dataclasses.fields(record) if field.name == key)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _written(key: str, hint: Any, default: object) -> str:
    name = f"--{key.replace('_', '-')}"
    if hint is bool:
        section, dot, leaf = key.replace("_", "-").rpartition(".")
        return f"--{section}{dot}no-{leaf}" if default is True and not dot else name
    return f"{name} {placeholder(hint)}"


def placeholder(hint: Any) -> str:
    """What stands for a value of a type: N, X, TEXT, PATH, or its choices."""
    (member,) = [member for member in alternatives(hint) if member is not NoneType][:1]
    if typing.get_origin(member) is tuple:
        return f"{placeholder(typing.get_args(member)[0])} ..."
    if typing.get_origin(member) is Literal:
        return "|".join(map(str, typing.get_args(member)))
    return PLACEHOLDERS[member]


def columns() -> int:
    """Characters of a line: the terminal's, 100 where there is none."""
    return min(max(shutil.get_terminal_size((100, 40)).columns, 60), WIDEST)


def table(rows: Iterable[tuple[str, str]], widest: int = 32) -> list[str]:
    """Two columns; the second is wrapped. A left cell that is too wide has a line of its own."""
    cells = list(rows)
    left = max([len(name) for name, _ in cells if len(name) <= widest], default=0) + 2
    lines: list[str] = []
    for name, text in cells:
        wrapped = textwrap.wrap(text, columns() - left - 2) or [""]
        if len(name) + 2 > left:
            lines.append(f"  {name}")
        else:
            lines.append(f"  {name:<{left}}{wrapped.pop(0)}".rstrip())
        lines += [f"  {'':<{left}}{line}" for line in wrapped]
    return lines


def option_lines(options: Sequence[Option], whole: bool = False) -> list[str]:
    """Options as lines of a page. A boolean that is on by default is written as the flag that turns it off."""
    return table((option.written, option.line(whole)) for option in options)


def heading(usage: str, examples: Sequence[str], about: str) -> list[str]:
    """The first lines of a page: examples, the usage, and what it is for."""
    title = "example:" if len(examples) == 1 else "examples:"
    shown = [f"{title} {examples[0]}"] if len(examples) == 1 else [title, *(f"  {line}" for line in examples)]
    return [*shown, "", f"usage: {usage}", "", *paragraphs(about)]


def paragraphs(text: str) -> list[str]:
    """A docstring's paragraphs, each wrapped to the page; a blank line between two."""
    lines: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        lines += [*([""] if lines else []), *textwrap.wrap(" ".join(paragraph.split()), columns())]
    return lines


def one_option(options: Sequence[Option], topic: str, command: str) -> list[str]:
    """The whole text of the option that `--help TOPIC` names.

    Raises:
        UserError: there is none.
    """
    wanted = topic.lstrip("-").replace("_", "-")
    names = {option.written.split()[0].removeprefix("--"): option for option in options}
    found = names.get(wanted) or names.get(f"no-{wanted}")
    if found is None:
        nearest = nearest_key(wanted, names)
        raise UserError(f"{command} --help {topic}: nothing of that name; nearest is {command} --help {nearest}")
    return option_lines([found], whole=True)
