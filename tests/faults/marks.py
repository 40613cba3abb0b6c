"""Which test injects which fault, read from the source of the tests: nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Marked:
    """A test with the mark of a fault; `reports`: it takes the fixture `saw`."""

    key: str
    test: str
    reports: bool


def marked_tests() -> list[Marked]:
    """All tests with a mark `fault(KEY)`, by file."""
    files = sorted(TESTS.rglob("test_*.py"))
    return [one for file in files for one in in_source(file.read_text(encoding="utf-8"), _name(file))]


def in_source(source: str, file: str) -> Iterator[Marked]:
    """The marked tests of one file."""
    if "fault(" not in source:
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            reports = "saw" in [argument.arg for argument in node.args.args]
            for decorator in node.decorator_list:
                for call in ast.walk(decorator):
                    match call:
                        case ast.Call(func=ast.Attribute(attr="fault"), args=[ast.Constant(value=str() as key)]):
                            yield Marked(key, f"{file}::{node.name}", reports)


def _name(file: Path) -> str:
    return file.relative_to(TESTS.parent).as_posix()
