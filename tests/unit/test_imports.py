"""The import table of the package: which part may know which, and where the heavy libraries may appear."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# timeline | device <- altup <- config <- report <- overlap, moe <- parallel <- model | data | checkpoint <- train
# <- inference <- bench | plan | doctor | show <- launch <- study | recipe <- api <- commands <- cli <- __main__,
# standby_process, tools.
# A part may import those of earlier rows; the parts of one row are siblings, and do not import each other but for
# `SIBLINGS`.
ROWS = (
    ("timeline", "device"),
    ("altup",),
    ("config",),
    ("report",),
    ("overlap", "moe"),
    ("parallel",),
    ("model", "data", "checkpoint"),
    ("train",),
    ("inference",),
    ("bench", "plan", "doctor", "show"),
    ("launch",),
    ("study", "recipe"),
    ("api",),
    ("commands",),
    ("cli",),
    ("__main__", "standby_process", "tools"),
)
SIBLINGS = {("moe", "overlap"), ("recipe", "study")}
"""(importer, imported) of one row: experts exchange beside other work, and the recipe is a study."""
ROW = {part: number for number, row in enumerate(ROWS) for part in row}

# Library -> (files that may import it, files among those that may not).
LIBRARIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "megatron": (
        (
            "altup_moe/parallel/*",
            "altup_moe/model/*",
            "altup_moe/moe/megatron_backend.py",
            "altup_moe/moe/router.py",
            "altup_moe/train/*",
            "altup_moe/checkpoint/bridge*.py",
        ),
        ("altup_moe/model/reference/*",),
    ),
    "deepspeed": (
        (
            "altup_moe/parallel/deepspeed_groups.py",
            "altup_moe/moe/deepspeed*.py",
            "altup_moe/train/deepspeed*.py",
        ),
        (),
    ),
    "tutel": (("altup_moe/moe/tutel*.py",), ()),
}


@dataclass(frozen=True)
class Import:
    """A module that a file imports, anywhere in it."""

    file: str
    line: int
    module: str


def imports(root: Path, path: Path) -> Iterator[Import]:
    """Every import of a file: at the top, inside functions, relative, and `import_module("...")` of a constant."""
    file = path.relative_to(root).as_posix()
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=file)):
        match node:
            case ast.Import(names=names):
                yield from (Import(file, node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                stem = ".".join([*base, *([module] if module else [])])
                # `from altup_moe import model` imports a part by its name alone.
                yield from (Import(file, node.lineno, f"{stem}.{alias.name}") for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str() as name), *_]):
                called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                if called in ("import_module", "__import__"):
                    yield Import(file, node.lineno, name)


def part_of(file: str) -> str:
    """The part of the package that a file belongs to; "" for altup_moe/__init__.py."""
    top, *rest = file.removesuffix(".py").split("/")
    return top if top != "altup_moe" else rest[0].replace("__init__", "")


def part_imported(module: str) -> str | None:
    """The part that a module belongs to; None for other libraries (and the bare package)."""
    top, *rest = module.split(".")
    if top == "tools":
        return top
    return rest[0] if top == "altup_moe" and rest else None


def violations(root: Path) -> list[str]:
    """What breaks the table below `root`, one readable line each."""
    files = sorted(path for top in ("altup_moe", "tools") for path in (root / top).rglob("*.py"))
    return [problem for path in files for found in imports(root, path) if (problem := violation(found))]


def violation(found: Import) -> str | None:
    """Why an import is not allowed, or None."""
    where = f"{found.file}:{found.line} imports {found.module}"
    importer, imported = part_of(found.file), part_imported(found.module)
    if importer not in ROW:
        return f"{where}: {importer or found.file} is not in the table" if imported else None
    if imported is not None and imported != importer:
        if imported not in ROW:
            return None if imported.startswith("__") else f"{where}: {imported} is not in the table"
        if ROW[imported] == ROW[importer] and (importer, imported) not in SIBLINGS:
            return f"{where}: {importer} and {imported} are siblings"
        if ROW[imported] > ROW[importer]:
            return f"{where}: {importer} comes before {imported}"
    library = found.module.partition(".")[0]
    if library in LIBRARIES:
        allowed, but = LIBRARIES[library]
        if any(fnmatch(found.file, p) for p in but) or not any(fnmatch(found.file, p) for p in allowed):
            return f"{where}: {library} may not appear here"
    return None


def test_the_package_keeps_the_table() -> None:
    assert violations(ROOT) == []


def test_the_walk_sees_the_package() -> None:
    seen = [found for path in (ROOT / "altup_moe").rglob("*.py") for found in imports(ROOT, path)]
    assert any(found.module.startswith("megatron.core") for found in seen)
    assert {"config", "model", "parallel"} <= {part_imported(found.module) for found in seen}


BROKEN = [
    ("altup_moe/altup/x.py", "import altup_moe.config.schema", "altup comes before config"),
    ("altup_moe/altup/x.py", "from altup_moe.moe import capacity", "altup comes before moe"),
    ("altup_moe/timeline/x.py", "from altup_moe.config.files import write_text", "timeline comes before config"),
    ("altup_moe/timeline/x.py", "from altup_moe.altup import stream", "timeline comes before altup"),
    ("altup_moe/overlap/x.py", "from altup_moe.moe import slots", "overlap and moe are siblings"),
    (
        "altup_moe/data/x.py",
        "def f():\n    from altup_moe.model.build import build_model",
        "data and model are siblings",
    ),
    ("altup_moe/model/x.py", "from ..checkpoint import store", "model and checkpoint are siblings"),
    ("altup_moe/parallel/x.py", "from altup_moe import train", "parallel comes before train"),
    ("altup_moe/bench/x.py", "import altup_moe.plan", "bench and plan are siblings"),
    ("altup_moe/train/x.py", "from altup_moe.cli import main", "train comes before cli"),
    ("altup_moe/cli.py", "import tools.prepare_data", "cli comes before tools"),
    (
        "altup_moe/model/x.py",
        "import importlib\nimportlib.import_module('altup_moe.study')",
        "model comes before study",
    ),
    ("altup_moe/config/x.py", "from altup_moe.surprise import y", "surprise is not in the table"),
    ("altup_moe/surprise.py", "from altup_moe.config import RunConfig", "surprise is not in the table"),
    ("altup_moe/__init__.py", "from altup_moe.config import RunConfig", "is not in the table"),
    ("altup_moe/config/x.py", "import megatron.core", "megatron may not appear here"),
    ("altup_moe/altup/x.py", "from megatron.core import parallel_state", "megatron may not appear here"),
    ("altup_moe/data/x.py", "def f():\n    import megatron", "megatron may not appear here"),
    ("altup_moe/overlap/collectives.py", "import megatron.core", "megatron may not appear here"),
    ("altup_moe/model/reference/gpt.py", "import megatron.core", "megatron may not appear here"),
    ("altup_moe/model/reference/layers.py", "import megatron.core", "megatron may not appear here"),
    ("altup_moe/checkpoint/store.py", "import megatron.core", "megatron may not appear here"),
    ("altup_moe/study/x.py", "import megatron.core", "megatron may not appear here"),
    ("tools/x.py", "__import__('megatron.core')", "megatron may not appear here"),
    ("altup_moe/launch/x.py", "import deepspeed", "deepspeed may not appear here"),
    ("altup_moe/parallel/x.py", "import deepspeed", "deepspeed may not appear here"),
    ("altup_moe/train/x.py", "def f():\n    import deepspeed", "deepspeed may not appear here"),
    ("altup_moe/moe/router.py", "import tutel", "tutel may not appear here"),
]


@pytest.mark.parametrize(("file", "source", "says"), BROKEN)
def test_a_violation_is_caught(tmp_path: Path, file: str, source: str, says: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    (problem,) = violations(tmp_path)
    assert problem.startswith(f"{file}:{len(source.splitlines())} imports ")
    assert problem.endswith(says)


ALLOWED = [
    ("altup_moe/config/x.py", "import dataclasses\nfrom altup_moe.config.schema import RunConfig\nfrom . import y"),
    ("altup_moe/parallel/x.py", "from altup_moe.altup.stream import widen\nfrom megatron.core import parallel_state"),
    ("altup_moe/model/x.py", "import megatron.core\nfrom ..parallel.topology import Topology"),
    ("altup_moe/overlap/collectives.py", "from altup_moe.timeline.spans import span"),
    ("altup_moe/checkpoint/bridge.py", "import megatron.core"),
    ("altup_moe/moe/router.py", "import megatron.core"),
    ("altup_moe/moe/megatron_backend.py", "import megatron.core"),
    ("altup_moe/moe/deepspeed.py", "def f():\n    import deepspeed"),
    ("altup_moe/parallel/deepspeed_groups.py", "import_module('deepspeed.utils.groups')"),
    ("altup_moe/train/deepspeed_engine.py", "import deepspeed"),
    ("altup_moe/cli.py", "from altup_moe.train import loop\nfrom altup_moe import __version__"),
    ("tools/x.py", "from altup_moe.data.prepare import prepare\nimport tools.other"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(source)
    assert violations(tmp_path) == []


def module_of(root: Path, path: Path) -> str:
    """The dotted name of a file; of a package's `__init__.py`, the package."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of altup_moe that it imports, at the top or inside functions.

    `from package import name` counts as the package's module `name` where there is one, else as the package itself.
    """
    paths = {module_of(root, path): path for path in sorted((root / "altup_moe").rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        named = [found.module for found in imports(root, path)]
        found = {name if name in paths else name.rpartition(".")[0] for name in named}
        graph[module] = {name for name in found if name in paths}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path of modules that each import the next and the last of which imports the first; empty if there is none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module not in done:
            for imported in sorted(graph[module]):
                if found := search(imported, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in graph if (found := search(module, []))), [])


def test_no_modules_import_each_other() -> None:
    graph = import_graph(ROOT)
    assert "altup_moe.config.errors" in graph["altup_moe.config"]
    assert "altup_moe.plan.calibrate.jobs" in graph
    assert circle(graph) == []


@pytest.mark.parametrize(
    "text",
    [
        "from altup_moe.plan.a import A",
        "def f():\n    from altup_moe.plan import a",
        "if TYPE_CHECKING:\n    from altup_moe.plan.a import A",
    ],
)
def test_a_circle_is_found(tmp_path: Path, text: str) -> None:
    """At the top of a module, inside a function or for types alone, with one module between."""
    folder = tmp_path / "altup_moe" / "plan"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text("from altup_moe.plan.b import B")
    (folder / "b.py").write_text("from . import c")
    (folder / "c.py").write_text("import altup_moe.plan")
    assert circle(import_graph(tmp_path)) == []
    (folder / "c.py").write_text(text)
    assert circle(import_graph(tmp_path)) == [f"altup_moe.plan.{name}" for name in "abc"]


def test_planning_and_showing_load_no_torch() -> None:
    """Only plan/calibrate/ may: a plan is made, and a run looked at, on machines without torch."""
    graph = import_graph(ROOT)
    packages = ("altup_moe.plan", "altup_moe.show", "altup_moe.report", "altup_moe.commands.show")
    planning = [m for m in graph if m.startswith(packages) and not m.startswith("altup_moe.plan.calibrate")]
    assert {"altup_moe.plan.step", "altup_moe.show.headline"} <= set(planning)
    code = f"import importlib, sys\nfor name in {planning!r}:\n    importlib.import_module(name)\n"
    code += "print('torch' in sys.modules, 'altup_moe.plan.step' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
