"""Configurations and command lines as a careless or hostile user writes them."""

from __future__ import annotations

import typing
from types import NoneType
from typing import Any, Literal

from hypothesis import strategies as st

from altup_moe.config.keys import alternatives
from altup_moe.config.load import HINTS

INTEGERS = (-1, 0, 1, 2, 3, 4, 7, 64, 1000, 10**6, 2**31 - 1, 2**31, 2**63, 2**80, 10**18, -(2**63))
FLOATS = (-1.0, 0.0, 1e-320, 1e-40, 1e-7, 0.5, 1.0, 2.0, 1e6, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "a\0b",
    "a\nb",
    "n" * 300,
    "/dev/null",
    "/proc/self/mem",
    "/nowhere/at/all",
    "..",
    "~",
    "python-docs=1e999999999",
    "python-docs=nan",
    "python-docs=-1",
    "cb=/nowhere",
    "1..-2",
    "5..1",
    "\u2028",
    "\ud7ff",
    "$(id)",
)
OTHERS: tuple[Any, ...] = (None, True, False, [], [1], {}, {"a": 1}, "1e3", "nan", 1.5, 3)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a field: of its types, at and beyond their ends, and now and then of another type."""
    choices: list[st.SearchStrategy[Any]] = [st.sampled_from(OTHERS)]
    for member in alternatives(hint):
        if typing.get_origin(member) is Literal:
            choices += [st.sampled_from(typing.get_args(member))] * 2
        elif typing.get_origin(member) is tuple:
            choices.append(st.lists(st.sampled_from(TEXTS), max_size=3))
        elif member is int:
            choices += [st.sampled_from(INTEGERS), st.integers(-10, 300), st.integers()]
        elif member is float:
            choices += [st.sampled_from(FLOATS), st.floats(), st.floats(0, 1)]
        elif member is str:
            choices += [st.sampled_from(TEXTS), st.text(max_size=20)]
        elif member is bool:
            choices.append(st.booleans())
        elif member is NoneType:
            choices.append(st.none())
    return st.one_of(choices)


@st.composite
def changed_keys(draw: st.DrawFn) -> dict[str, Any]:
    """One to four keys of a run's configuration with their values."""
    keys = draw(st.lists(st.sampled_from(sorted(HINTS)), min_size=1, max_size=4, unique=True))
    return {key: draw(values_of(HINTS[key])) for key in keys}


def as_words(changes: dict[str, Any]) -> list[str]:
    """The same as flags, as far as a command line can say it."""
    words: list[str] = []
    for key, value in changes.items():
        if isinstance(value, list):
            words += [f"--{key}", *map(str, value)]
        else:
            words.append(f"--{key}={value}")
    return [word.replace("\0", "") for word in words]
