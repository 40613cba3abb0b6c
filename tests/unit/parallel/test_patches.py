"""What is replaced in other libraries: each name looks as the table says, and one that does not ends with one line."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from altup_moe.parallel import patches
from altup_moe.parallel.patches import PATCHES, Patch, PatchError, as_markdown, original, replace

ROOT = Path(__file__).parents[3]
CHECK_ALL = """
import warnings
warnings.filterwarnings("ignore")
from altup_moe.parallel.patches import PATCHES
print([problem for patch in PATCHES.values() if (problem := patch.problem())])
"""


@pytest.mark.slow
def test_every_name_looks_as_the_table_says() -> None:
    """In a process where nothing is replaced yet."""
    done = subprocess.run([sys.executable, "-c", CHECK_ALL], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_page_of_the_documentation_is_the_table() -> None:
    assert (ROOT / "docs" / "developing" / "patches.md").read_text(encoding="utf-8") == as_markdown()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A library of one function and one class, and a table of their rows."""

    class Thing:
        @classmethod
        def make(cls, size: int) -> int:
            return size

    def work(a: int, b: int) -> int:
        return abs(a) + b

    module = SimpleNamespace(work=work, Thing=Thing, value=3)
    monkeypatch.setitem(sys.modules, "pretend", module)
    rows = (
        Patch("pretend:work", "r", "pretend 1", "x.py", ("a", "b"), looks_up=("abs",)),
        Patch("pretend:Thing.make", "r", "pretend 1", "x.py", ("size",)),
        Patch("pretend:value", "r", "pretend 1", "x.py"),
        Patch("pretend:later", "r", "pretend 1", "x.py", may_be_missing=True),
    )
    monkeypatch.setattr(patches, "PATCHES", {row.target: row for row in rows})
    return module


def test_a_name_is_replaced_and_given_back(library: SimpleNamespace) -> None:
    assert replace("pretend:value", 4) == 3
    assert library.value == 4
    assert isinstance(original("pretend:Thing.make"), classmethod)
    assert replace("pretend:later", None) is None
    assert library.later is None


def test_a_name_that_is_not_in_the_table_is_not_replaced(library: SimpleNamespace) -> None:
    with pytest.raises(KeyError):
        replace("pretend:Thing", None)


def test_a_name_that_looks_different_ends_with_one_line(library: SimpleNamespace) -> None:
    library.work = lambda a, c: abs(a) + c
    with pytest.raises(PatchError) as told:
        replace("pretend:work", None)
    assert str(told.value) == (
        "pretend:work: x.py replaces it, but it takes (a, c), not (a, b); pretend not installed, known: pretend 1"
    )
    library.work = lambda a, b: a + b
    with pytest.raises(PatchError, match="it does not use abs"):
        replace("pretend:work", None)
    del library.value
    with pytest.raises(PatchError, match="it is not there"):
        replace("pretend:value", None)
    library.Thing.make = 3
    with pytest.raises(PatchError, match="it is no function"):
        replace("pretend:Thing.make", None)


def test_a_name_that_was_renamed_is_there_by_one_of_its_names(library: SimpleNamespace) -> None:
    new = Patch("pretend:fresh", "r", "pretend 1", "x.py", or_else="value")
    assert new.problem() is None
    del library.value
    assert new.problem() == (
        "pretend:fresh: x.py replaces it, but neither it nor value is there; pretend not installed, known: pretend 1"
    )


def test_nothing_else_sets_attributes_of_other_libraries() -> None:
    """`setattr` and assignments to a module's attribute stand in `patches.replace` alone (and CPU's moments)."""
    libraries, found = ("torch", "megatron", "deepspeed", "transformers", "tutel"), []
    for file in (ROOT / "altup_moe").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
            if (getattr(node, "module", None) or alias.name).partition(".")[0] in libraries
        }
        for node in ast.walk(tree):
            for target in node.targets if isinstance(node, ast.Assign) else ():
                root = target
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported:
                    found.append(f"{file.relative_to(ROOT)}: {ast.unparse(target)}")
    assert set(found) == {"altup_moe/parallel/cpu.py: torch.Tensor.type"}


def test_the_table_covers_the_libraries() -> None:
    assert len(PATCHES) >= 40
    assert {patch.library for patch in PATCHES.values()} == {"torch", "megatron", "deepspeed"}
