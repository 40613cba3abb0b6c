"""The names and signatures of `altup_moe.api`, a line each.

python -m tests.api.public_api              after a change: write tests/golden/public_api.txt
python -m tests.api.public_api --release    at a release: what is public now is what the release has
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from altup_moe import api

ROOT = Path(__file__).parents[2]
CURRENT = ROOT / "tests" / "golden" / "public_api.txt"
RELEASED = ROOT / "tests" / "golden" / "public_api_released.txt"
COMMAND = "python -m tests.api.public_api"


def listing() -> list[str]:
    """One line for each name, and for each public member of a class of ours, in the order of names."""
    return [line for name in sorted(api.__all__) for line in lines_of(name, getattr(api, name))]


def lines_of(name: str, thing: Any) -> Iterator[str]:
    """A name's own line, then a class's members."""
    if isinstance(thing, FunctionType):
        yield f"{name}{signature(thing)}"
        return
    yield f"class {name}"
    if not dataclasses.is_dataclass(thing) and not thing.__module__.startswith("altup_moe.api"):
        return  # a base class for one's own, or an error: what is inside is not promised
    for member, value in members(thing):
        yield f"{name}.{member}{value}"


def members(kind: type) -> Iterator[tuple[str, str]]:
    """Fields of a record in order (``: type = default``), then methods and properties that the class itself defines."""
    fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    for field in fields:
        default = "" if field.default is dataclasses.MISSING else f" = {field.default!r}"
        yield field.name, f": {field.type}{default}"
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") or name in {field.name for field in fields}:
            continue
        if isinstance(value, property):
            yield name, f" -> {value.fget.__annotations__.get('return')}"
        elif isinstance(value, FunctionType):
            yield name, signature(value)


def signature(function: FunctionType) -> str:
    """Parameters and result as they are written."""
    return str(inspect.signature(function)).replace("'", "")


def names(lines: Sequence[str]) -> dict[str, str]:
    """Name -> its line."""
    return {re.match(r"(?:class )?([\w.]+)", line)[1]: line for line in lines if line and line[0] != "#"}  # type: ignore[index]


def changed(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Names that are new, gone or different, in order."""
    old, new = names(before), names(now)
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def unreleased(changelog: str) -> str:
    """The changelog's section Unreleased; "" if there is none."""
    found = re.search(r"^## \[?Unreleased\]?.*?$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def not_told(before: Sequence[str], now: Sequence[str], changelog: str) -> list[str]:
    """Changed names that the section Unreleased does not have; a class that is new or gone stands for its members."""
    told = set(re.findall(r"[\w.]+", unreleased(changelog)))
    old, new = names(before), names(now)

    def covered(name: str) -> bool:
        owner = name.partition(".")[0]
        whole = (owner in old) != (owner in new)
        return name in told or f"api.{name}" in told or (whole and {owner, f"api.{owner}"} & told != set())

    return [name for name in changed(before, now) if not covered(name)]


def main(words: Sequence[str]) -> None:
    """Write the file, or both."""
    text = "".join(f"{line}\n" for line in [f"# Written by {COMMAND}", *listing()])
    for path in [CURRENT, *([RELEASED] if "--release" in words else [])]:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
