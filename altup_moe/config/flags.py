"""Command-line options as typed dataclasses: tyro parses and prints the help, the errors are one line each.

tyro (https://brentyi.github.io/tyro) reports a mistake as a box over several lines. Here option names are looked up
first, and where tyro refuses a value, the option at fault is found by parsing each alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, TypeVar

from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.keys import alternatives, expects, field_hints, unknown_key

Record = TypeVar("Record")

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), "True"),
    **dict.fromkeys(("false", "no", "off", "0"), "False"),
}
"""Spellings of a boolean, and tyro's."""
NOTHING = ("none", "null", "~")
"""Spellings of None."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One option as given: dotted key and the words that followed, booleans and None spelled as tyro does."""

    key: str
    words: tuple[str, ...]


def check_utf8(words: Sequence[str]) -> None:
    """Raise UserError for a word of a command line that is not UTF-8: nothing could spell it, in files or messages."""
    for number, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"word {number} of the command line is not UTF-8: {os.fsencode(word)!r}") from None


def read_flags(
    args: Sequence[str], hints: Mapping[str, Any], positionals: int = 0
) -> tuple[list[str], dict[str, Flag]]:
    """Split a command line into positional words and options.

    Takes ``--a.b v``, ``--a.b=v``, hyphens for underscores, ``--a.flag``, ``--a.no-flag`` and ``--a.flag false``.
    An option given twice counts the second time.

    Args:
        args: the words.
        hints: type of every option by dotted key (`field_hints`).
        positionals: words without dashes that are allowed.

    Raises:
        ConfigError: an unknown option, or one without its value.
        UserError: a word too many, or one that is not UTF-8.
    """
    check_utf8(args)
    rest = list(args)
    found: list[str] = []
    flags: dict[str, Flag] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            if len(found) == positionals:
                key = word.partition("=")[0].replace("-", "_")
                example = key if key in hints else next(iter(hints))
                raise UserError(f"{word!r}: unexpected word; options are written --{example} VALUE")
            found.append(word)
            continue
        if not word.startswith("--"):
            raise UserError(f"{word}: unknown option; options are written --{next(iter(hints))} VALUE")
        name, equals, attached = word[2:].partition("=")
        key = name.replace("-", "_")
        if key not in hints and (positive := _negated(key, hints)) and not equals:
            flags[positive] = Flag(positive, ("False",))
            continue
        if key not in hints:
            given = attached if equals else (rest[0] if rest and not rest[0].startswith("--") else "")
            raise unknown_key(key, plain(given), hints)
        words = [attached] if equals else _following(rest, hints[key], positionals > len(found))
        if not words:
            raise ConfigError(key, "", f"needs a value: {expects(hints[key])}")
        flags[key] = Flag(key, tuple(_spelled(word, hints[key]) for word in words))
    return found, flags


def parse(
    record: type[Record],
    args: Sequence[str],
    default: Record | None = None,
    positional: str | tuple[str, ...] | None = None,
) -> Record:
    """Parse options into a dataclass.

    Args:
        record: the dataclass; its sections are dotted.
        args: the command line's words.
        default: values of what is not given; needed where fields have no default.
        positional: name of the field that is given without a name, or names in order. The last may be a tuple.

    Raises:
        ConfigError: an unknown option, a missing or a wrong value.
    """
    hints = field_hints(record)
    unnamed = (positional,) if isinstance(positional, str) else positional or ()
    # A tuple takes all words that are left.
    many = tuple in [typing.get_origin(hints.pop(name)) for name in unnamed]
    found, flags = read_flags(args, hints, positionals=sys.maxsize if many else len(unnamed))
    if default is None:
        _check_required(record, {*flags, *unnamed[: len(found)]}, unnamed)
    normalised = [*found, *(word for flag in flags.values() for word in _as_words(flag))]
    try:
        return _quiet_tyro(record, normalised, default)
    except SystemExit:
        for flag in flags.values():
            _check_alone(flag, hints[flag.key])
        raise UserError(f"cannot parse {' '.join(args)}") from None


def print_help(record: type[Record], prog: str, default: Record | None = None) -> None:
    """Print tyro's help of every field, with its docstring and default, to stdout."""
    try:
        with contextlib.suppress(SystemExit):
            _tyro(record, ["--help"], default, prog)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the interpreter must not complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def plain(word: str) -> object:
    """A word as the number it spells, for messages; else the word."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def _tyro(record: Any, args: Sequence[str], default: Any = None, prog: str | None = None) -> Any:
    import tyro  # a tenth of a second that `import altup_moe.config` need not pay

    options = {} if default is None else {"default": default}
    config = (tyro.conf.FlagConversionOff,)
    return tyro.cli(record, args=args, prog=prog, config=config, **options)


def _quiet_tyro(record: Any, args: Sequence[str], default: Any = None) -> Any:
    # Not `console_outputs=False`: tyro 1.0 prints values that it cannot convert all the same.
    with contextlib.redirect_stderr(io.StringIO()):
        return _tyro(record, args, default)


def _negated(key: str, hints: Mapping[str, Any]) -> str | None:
    """The boolean key that ``a.no_flag`` turns off, if it exists."""
    section, dot, leaf = key.rpartition(".")
    positive = f"{section}{dot}{leaf.removeprefix('no_')}"
    return positive if leaf.startswith("no_") and hints.get(positive) is bool else None


def _following(rest: list[str], hint: Any, word_may_be_positional: bool) -> list[str]:
    """Take an option's value off the words that follow it."""
    values = 0
    while values < len(rest) and not rest[values].startswith("--"):
        values += 1
    if hint is bool:
        spelled = values > 0 and (rest[0].lower() in BOOLEANS or not word_may_be_positional)
        return [rest.pop(0)] if spelled else ["True"]
    taken = values if typing.get_origin(hint) is tuple else min(values, 1)
    words = rest[:taken]
    del rest[:taken]
    return words


def _spelled(word: str, hint: Any) -> str:
    if hint is bool:
        return BOOLEANS.get(word.lower(), word)
    return "None" if NoneType in alternatives(hint) and word.lower() in NOTHING else word


def _as_words(flag: Flag) -> list[str]:
    """`--key=value` keeps a value that begins with a dash; several values need words of their own."""
    return [f"--{flag.key}={flag.words[0]}"] if len(flag.words) == 1 else [f"--{flag.key}", *flag.words]


def _check_required(record: Any, given: set[str], positional: Sequence[str]) -> None:
    for field in dataclasses.fields(record):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            option = field.name.upper() if field.name in positional else f"--{field.name}"
            raise UserError(f"{option} is missing; --help says what it is")


def _check_alone(flag: Flag, hint: Any) -> None:
    record = dataclasses.make_dataclass("One", [("value", hint)])
    try:
        _quiet_tyro(record, _as_words(Flag("value", flag.words)))
    except SystemExit:
        raise ConfigError(flag.key, plain(" ".join(flag.words)), f"expects {expects(hint)}") from None
