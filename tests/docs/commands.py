"""The commands of the documentation: blocks of code on its pages, and what the comments before them say.

python -m tests.docs.commands      what is run and what is not, by page
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
Kind = Literal["command", "python", "file"]
Tier = Literal["run", "long", "not run"]

_COMMENT = re.compile(
    r"^\s*<!--\s*(?P<name>not run|run small|run in test-all|exit code|setup)(?::\s*(?P<value>.*?))?\s*-->\s*$"
)
_FENCE = re.compile(r"^(?P<indent>\s*)(?P<fence>`{3,}|~{3,})\s*(?P<language>[\w+-]*)")
_FILE = re.compile(r"^#\s*file:\s*(?P<name>[\w.-]+\.ya?ml)\s*$")
_TRAIN = re.compile(r"\baltup-moe\s+train\b")
SMALL = {"data.cache": "../../tokens", "train.micro_batch_size": "2", "train.global_batch_size": "4"}
"""Added to every `altup-moe train` that is run small or a setup, unless it has the key: pages share their tokens."""


@dataclass(frozen=True)
class Marks:
    """What the comments before a block say. ``small``: words for `altup-moe train`; ``code``: of the last line."""

    not_run: str | None = None
    small: str = ""
    long: bool = False
    code: int = 0


@dataclass(frozen=True)
class Item:
    """One thing to do: a line of a shell, a block of Python, or a file to write.

    ``line``: in the page, from 1. ``text``: the command as it is run, the code, or the file's content.
    ``name``: the file's name. ``tier``: when it is done; ``reason``: why it is not.
    """

    page: str
    line: int
    kind: Kind
    text: str
    tier: Tier = "run"
    reason: str = ""
    code: int = 0
    name: str = ""


@dataclass
class _Block:
    line: int
    language: str
    indent: int
    lines: list[str] = field(default_factory=list)


class PageError(ValueError):
    """A page whose blocks or comments cannot be understood."""


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and all pages of docs/, in order."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.is_file()]


def items_of(page: Path, root: Path = ROOT) -> list[Item]:
    """What a page asks to be done, in its order.

    Raises:
        PageError: a comment that belongs to no block, a reason that is missing, a block without an end.
    """
    return list(_items(page.relative_to(root).as_posix(), page.read_text(encoding="utf-8")))


def _items(page: str, text: str) -> Iterator[Item]:
    marks: dict[str, str] = {}
    block: _Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{page}:{number}"
        if block is not None:
            if line.strip().startswith(("```", "~~~")):
                yield from _block_items(page, block, _marks(where, marks))
                block, marks = None, {}
            else:
                block.lines.append(line[block.indent :])
        elif found := _FENCE.match(line):
            block = _Block(number, found["language"], len(found["indent"]))
        elif found := _COMMENT.match(line):
            if found["name"] == "setup":
                yield Item(page, number, "command", _small(found["value"] or ""))
            else:
                marks[found["name"]] = found["value"] or ""
        elif line.strip().startswith("<!--") and re.match(r"^\s*<!--\s*(not run|run|exit|setup)", line):
            raise PageError(f"{where}: a comment that is not understood: {line.strip()}")
        elif marks:
            raise PageError(f"{where}: the comment before this line belongs to no block: {', '.join(marks)}")
    if block is not None:
        raise PageError(f"{page}:{block.line}: the block has no end")


def _marks(where: str, found: dict[str, str]) -> Marks:
    if "not run" in found and not found["not run"]:
        raise PageError(f"{where}: 'not run' needs a reason")
    return Marks(
        found.get("not run"), found.get("run small", ""), "run in test-all" in found, int(found.get("exit code", "0"))
    )


def _block_items(page: str, block: _Block, marks: Marks) -> Iterator[Item]:
    tier: Tier = "not run" if marks.not_run is not None else "long" if marks.long else "run"
    reason, first = marks.not_run or "", block.line + 1
    content = "\n".join(block.lines) + "\n"
    if block.language == "bash":
        commands = list(_joined(block.lines, first))
        for number, command in commands:
            text = _small(f"{command} {marks.small}") if marks.small and _TRAIN.search(command) else command
            code = marks.code if (number, command) == commands[-1] else 0
            yield Item(page, number, "command", text, tier, reason, code)
    elif block.language == "python":
        yield Item(page, first, "python", content, tier, reason, marks.code)
    elif block.language in ("yaml", "yml") and block.lines and (named := _FILE.match(block.lines[0])):
        yield Item(page, first, "file", content, tier, reason, name=named["name"])


def _small(command: str) -> str:
    if not _TRAIN.search(command):
        return command
    return " ".join([command, *(f"--{key} {value}" for key, value in SMALL.items() if f"--{key}" not in command)])


def _joined(lines: list[str], first: int) -> Iterator[tuple[int, str]]:
    """(line, command) of a block: continuation lines joined, comments and prompts taken off."""
    held, start = "", first
    for number, line in enumerate(lines, first):
        if not held:
            start = number
        held += line.strip()
        if held.endswith("\\"):
            held = held[:-1].rstrip() + " "
            continue
        command = re.sub(r"(?:^|\s)#\s.*$", "", held).strip()
        held = ""
        if command:
            yield start, command
    if held:
        yield start, held.strip()


def counts(root: Path = ROOT) -> list[str]:
    """Lines: how many commands and blocks are run, by tier; the reasons of the others."""
    found = [item for page in pages(root) for item in items_of(page, root) if item.kind != "file"]
    tiers = Counter(item.tier for item in found)
    lines = [f"{len(found)} commands: {tiers['run']} run, {tiers['long']} in test-all, {tiers['not run']} not run"]
    for page in dict.fromkeys(item.page for item in found):
        here = Counter(item.tier for item in found if item.page == page)
        lines.append(f"  {page}: {here['run']} run, {here['long']} in test-all, {here['not run']} not run")
    reasons = Counter(item.reason for item in found if item.tier == "not run")
    return [*lines, *(f"  not run ({count}): {reason}" for reason, count in reasons.most_common())]


if __name__ == "__main__":
    print("\n".join(counts()))
    sys.exit(0)
