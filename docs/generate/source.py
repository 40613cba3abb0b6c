"""Read what a module says of its names: docstrings below fields and constants. Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Named:
    """A field of a class, or a constant of a module. ``kind``, ``value``: as the source spells them, "" if absent."""

    name: str
    kind: str
    value: str
    doc: str


def tree(file: str) -> ast.Module:
    """A parsed file of this repository, by its path from the root."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=file)


def module_doc(file: str) -> str:
    """The docstring of a module."""
    return ast.get_docstring(tree(file)) or ""


def constants(file: str) -> list[Named]:
    """Constants of a module, in its order."""
    return list(_named(tree(file).body))


def fields(file: str, name: str) -> list[Named]:
    """Annotated fields of a class of a module, in its order."""
    found = next(node for node in tree(file).body if isinstance(node, ast.ClassDef) and node.name == name)
    return [one for one in _named(found.body) if one.kind]


def functions(file: str) -> list[tuple[str, list[str], str, str]]:
    """(name, parameters, what it returns, docstring) of every public function of a module, in its order."""
    return [
        (
            node.name,
            [argument.arg for argument in node.args.args],
            ast.unparse(node.returns) if node.returns else "",
            ast.get_docstring(node) or "",
        )
        for node in tree(file).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    ]


def _named(body: Sequence[ast.stmt]) -> Iterator[Named]:
    for statement, after in zip(body, [*body[1:], None], strict=True):
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=value):
                yield Named(name, ast.unparse(kind), ast.unparse(value) if value else "", _doc(after))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield Named(name, "", ast.unparse(value), _doc(after))


def _doc(statement: ast.stmt | None) -> str:
    match statement:
        case ast.Expr(value=ast.Constant(value=str() as text)):
            return " ".join(text.split())
    return ""
