"""Command-line options as typed dataclasses: the one parser of every command, with errors of one line each.

A record's fields are the options, its docstrings their help (`help_pages.py`), its sections dotted keys. `-` and `_`
are the same in an option's name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar

from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.keys import alternatives, expects, field_hints, nearest_key, unknown_key
from altup_moe.config.synonyms import synonym

Record = TypeVar("Record")

BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
"""Spellings of a boolean."""


def _path(word: str) -> Path:
    """A word as a path; an empty one (of a shell's variable that is not set) would be the working directory."""
    if not word:
        raise ValueError(word)
    return Path(word)


CONVERSIONS: dict[Any, Callable[[str], object]] = {int: int, float: float, str: str, Path: _path}
"""Type of a field -> function that makes its value of a word, or raises ValueError."""
NOTHING = ("none", "null", "~")
"""Spellings of None."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One option as given: its key and the words that followed."""

    key: str
    words: tuple[str, ...]

    def as_words(self) -> list[str]:
        """Words that are read as this option: `--key=value` keeps a value that begins with a dash."""
        return [f"--{self.key}={self.words[0]}"] if len(self.words) == 1 else [f"--{self.key}", *self.words]


def check_utf8(words: Sequence[str]) -> None:
    """Raise UserError for a word of a command line that is not UTF-8: nothing could spell it, in files or messages."""
    for number, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"word {number} of the command line is not UTF-8: {os.fsencode(word)!r}") from None
        if "\0" in word:
            raise UserError(f"word {number} of the command line has a NUL character: {word!r}")


def read_flags(
    args: Sequence[str], hints: Mapping[str, Any], positionals: int = 0, stray: str = ""
) -> tuple[list[str], dict[str, Flag]]:
    """Split a command line into positional words and options.

    Takes ``--a.b v``, ``--a.b=v``, hyphens for underscores, ``--a.flag``, ``--a.no-flag`` and ``--a.flag false``.
    An option given twice counts the second time.

    Args:
        args: the words.
        hints: type of every option by dotted key (`field_hints`).
        positionals: words without dashes that are allowed.
        stray: what the error about a word too many says, with {word} for it; "" how options are written.

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
                advice = stray.replace("{word}", shlex.quote(word)) or _how_options_are_written(word, hints)
                raise UserError(f"{word!r}: unexpected word; {advice}")
            found.append(word)
            continue
        if not word.startswith("--"):
            raise UserError(f"{word}: unknown option; {_how_options_are_written(word, hints)}")
        name, equals, attached = word[2:].partition("=")
        key = name.replace("-", "_")
        if key not in hints and (positive := _negated(key, hints)) and not equals:
            flags[positive] = Flag(positive, ("false",))
            continue
        if key not in hints:
            given = attached if equals else (rest[0] if rest and not rest[0].startswith("--") else "")
            raise _unknown(key, plain(given), hints)
        words = [attached] if equals else _following(rest, hints[key], positionals > len(found))
        if not words:
            raise ConfigError(spelled(key, hints), "", f"needs a value: {_expected(key, hints)}")
        flags[key] = Flag(key, tuple(words))
    return found, flags


def parse(
    record: type[Record],
    args: Sequence[str],
    default: Record | None = None,
    positional: str | tuple[str, ...] | None = None,
    example: str = "",
    stray: str = "",
) -> Record:
    """Parse options into a dataclass.

    Args:
        record: the dataclass; its sections are dotted.
        args: the command line's words.
        default: values of what is not given; needed where fields have no default.
        positional: name of the field that is given without a name, or names in order; the last may be a tuple, which
            takes all words that are left.
        example: a command line that is complete, for the error where something is missing.
        stray: as for `read_flags`.

    Raises:
        ConfigError: an unknown option, or a wrong value.
        UserError: a missing value, or a word too many.
    """
    hints = field_hints(record)
    unnamed = (positional,) if isinstance(positional, str) else positional or ()
    named = {key: hint for key, hint in hints.items() if key not in unnamed}
    many = bool(unnamed) and typing.get_origin(hints[unnamed[-1]]) is tuple
    found, flags = read_flags(args, named, positionals=sys.maxsize if many else len(unnamed), stray=stray)
    last = len(unnamed) - 1
    values: dict[str, object] = {}
    for place, name in enumerate(unnamed[: len(found)]):
        try:
            flag = Flag(name, tuple(found[place:] if many and place == last else [found[place]]))
            values[name] = converted(flag, hints)
        except ConfigError as error:
            raise ConfigError(name.upper(), error.value, error.fits) from None
    if default is None:
        _check_required(record, {*flags, *values}, unnamed, example)
    values |= {flag.key: converted(flag, named) for flag in flags.values()}
    return _replaced(record, default, values)


def split_command(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words before the first `--`, words after it): a launcher's own, and the command that it starts."""
    words = list(args)
    cut = words.index("--") if "--" in words else len(words)
    return words[:cut], words[cut + 1 :]


def converted(flag: Flag, hints: Mapping[str, Any]) -> object:
    """An option's words as a value of its type.

    Raises:
        ConfigError: they spell none.
    """
    hint = hints[flag.key]
    for member in alternatives(hint):
        with contextlib.suppress(ValueError, KeyError):
            if typing.get_origin(member) is tuple:
                item = typing.get_args(member)[0]
                return tuple(_value(word, item) for word in flag.words)
            (word,) = flag.words
            if NoneType in alternatives(hint) and word.lower() in NOTHING:
                return None
            return _value(word, member)
    raise ConfigError(spelled(flag.key, hints), plain(" ".join(flag.words)), f"expects {_expected(flag.key, hints)}")


def spelled(key: str, keys: Mapping[str, Any]) -> str:
    """A key in messages: dotted where a command has sections, else as the flag that one types."""
    return key if any("." in known for known in keys) else f"--{key.replace('_', '-')}"


def _expected(key: str, hints: Mapping[str, Any]) -> str:
    """The values of an option in words; only files and dotted keys spell None."""
    words = expects(hints[key])
    return words if "." in key else words.removesuffix(" or null")


def plain(word: str) -> object:
    """A word as the number it spells, for messages; else the word."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def _value(word: str, hint: Any) -> object:
    if typing.get_origin(hint) is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}[word]
    return BOOLEANS[word.lower()] if hint is bool else CONVERSIONS[hint](word)


def _replaced(record: type[Record], default: Record | None, values: Mapping[str, object]) -> Record:
    """A record with some values, by dotted key, beside those of `default`."""
    changes: dict[str, Any] = {}
    sections: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        section, dot, leaf = key.partition(".")
        if dot:
            sections.setdefault(section, {})[leaf] = value
        else:
            changes[key] = value
    if default is None and not sections:
        return record(**changes)
    base: Any = record() if default is None else default
    for section, inner in sections.items():
        old = getattr(base, section)
        changes[section] = _replaced(type(old), old, inner)
    replaced: Record = dataclasses.replace(base, **changes)
    return replaced


def _unknown(key: str, value: object, hints: Mapping[str, Any]) -> UserError:
    wrong = f"--{key.replace('_', '-')}"
    if any("." in known for known in hints) or not hints:
        error = unknown_key(key, value, hints)
        nearest = error.fits.rpartition("nearest is ")[2]
        if "." in key or nearest not in hints or "." in nearest:
            return error
    else:
        meant = (synonym(key) or ("", ""))[0].rpartition(".")[2]
        nearest = meant if meant in hints else nearest_key(key, hints)
    return UserError(f"{wrong}: unknown option; nearest is --{nearest.replace('_', '-')}")


def _how_options_are_written(word: str, hints: Mapping[str, Any]) -> str:
    """For the message about a stray word: the option that was perhaps meant."""
    if not hints:
        return "--help says what fits"
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    example = nearest_key(key, hints) if len(key) > 1 else next(iter(hints))
    return f"options are written --{example if '.' in example else example.replace('_', '-')} VALUE"


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
        given = values > 0 and (rest[0].lower() in BOOLEANS or not word_may_be_positional)
        return [rest.pop(0)] if given else ["true"]
    taken = values if typing.get_origin(hint) is tuple else min(values, 1)
    words = rest[:taken]
    del rest[:taken]
    return words


def _check_required(record: Any, given: set[str], positional: Sequence[str], example: str) -> None:
    for field in dataclasses.fields(record):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            option = field.name.upper() if field.name in positional else f"--{field.name.replace('_', '-')}"
            raise UserError(f"{option} is missing" + (f", as in {example}" if example else ""))
