"""The docstrings that stand below the fields of a dataclass, read from its source."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(record: type) -> dict[str, str]:
    """Field -> its docstring as one line; fields without one are left out. The source must be at hand.

    Args:
        record: a dataclass. Fields of the classes it is derived from are not looked for.
    """
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for before, after in zip(definition.body, definition.body[1:], strict=False):
        match before, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                docs[name] = " ".join(text.split())
    return docs
