"""What pages say exists: files and keys in backticks, packages, links to files; and no path of a machine."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from altup_moe.config.load import HINTS, SECTIONS
from tests.docs.commands import ROOT, pages

PAGES = [*pages(), ROOT / "CONTRIBUTING.md"]
TOPS = ("altup_moe", "tests", "tools", "launch", "configs", "docs", "examples")
FILE_ENDINGS = ("py", "md", "yaml", "yml", "toml", "json", "jsonl", "sh", "txt", "sbatch", "svg", "css", "js")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_MACHINE = re.compile(r"(?<![\w.-])/(?:work|root|home|tmp)/[\w./-]+")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of a page outside of its blocks and comments."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip().startswith(("```", "~~~")):
            inside = not inside
        elif not inside and not line.strip().startswith("<!--"):
            yield number, line


def spans(text: str) -> Iterator[tuple[int, str]]:
    """(line, code in backticks)."""
    return ((number, span) for number, line in prose(text) for span in _SPAN.findall(line))


def dead_paths(text: str) -> list[str]:
    """Paths of this repository in backticks that do not exist; a path may be given from `altup_moe/` on."""
    found = []
    for number, span in spans(text):
        path = span.partition("::")[0].rstrip("/")
        top = path.split("/")[0]
        rooted = "/" in path and top in TOPS
        inside = "/" in path and (ROOT / "altup_moe" / top).is_dir() and path.endswith(".py")
        # NAME in capitals stands for a name.
        if not re.fullmatch(r"[a-z\d_./-]+", path) or not (rooted or inside):
            continue
        if not (ROOT / path).exists() and not (ROOT / "altup_moe" / path).exists():
            found.append(f"line {number}: {span}")
    return found


def unknown_keys(text: str) -> list[str]:
    """Keys `section.key` in backticks that no configuration has; with a value behind them too."""
    found = []
    for number, span in spans(text):
        key = re.match(r"^(?:--)?([a-z_]+)\.([a-z_0-9]+)(?=$|[ :=])", span)
        if key and key[1] in SECTIONS and key[2] not in FILE_ENDINGS and f"{key[1]}.{key[2]}" not in HINTS:
            found.append(f"line {number}: {span}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_and_keys_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not dead_paths(text)
    assert not [key for key in unknown_keys(text) if not is_module(key)]


def is_module(found: str) -> bool:
    """Whether `train.step` is a module's name and no key."""
    section, _, name = found.rpartition(" ")[2].partition(".")
    return (ROOT / "altup_moe" / section / f"{name}.py").is_file() or (ROOT / "altup_moe" / section / name).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    links = [link for _, line in prose(page.read_text(encoding="utf-8")) for link in _LINK.findall(line)]
    relative = [link.partition("#")[0] for link in links if not re.match(r"(https?|mailto):|#", link)]
    assert not [link for link in relative if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_path_of_a_machine(page: Path) -> None:
    assert not _MACHINE.findall(page.read_text(encoding="utf-8"))


def test_every_package_has_a_row() -> None:
    text = (ROOT / "docs" / "developing" / "architecture.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert {path.parent.name for path in (ROOT / "altup_moe").glob("*/__init__.py")} == rows


def test_every_page_is_in_the_nav() -> None:
    """As `make docs` does, without building; the nav names no page that is not there."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"([\w/]+\.md)\b", nav)
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


def test_what_these_tests_would_find() -> None:
    text = (
        "`altup_moe/train/lop.py` `altup_moe/train/loop.py` `train/lop.py` `tests/unit/` `moe/router.py::route`\n"
        "`train.stps` `train.steps 5` `--optim.lr 1` `log.txt` `parallel.data: 2`\n"
        "```bash\n`altup_moe/none.py`\n```\n"
    )
    assert dead_paths(text) == ["line 1: altup_moe/train/lop.py", "line 1: train/lop.py"]
    assert unknown_keys(text) == ["line 2: train.stps", "line 2: --optim.lr 1"]
    assert _MACHINE.findall("in /home/me/runs and /root/x, not runs/work/x or /dev/shm/x") == [
        "/home/me/runs",
        "/root/x",
    ]


def test_the_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_public_name_is_on_its_page() -> None:
    """Read, not imported: the page must build without torch too."""
    module = ast.parse((ROOT / "altup_moe" / "api" / "__init__.py").read_text(encoding="utf-8"))
    (public,) = (
        ast.literal_eval(node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    page = (ROOT / "docs" / "reference" / "python_api.md").read_text(encoding="utf-8")
    named_there = re.findall(r"^::: altup_moe\.(?:api|config)\.(\w+)$", page, re.M)
    assert sorted(named_there) == sorted(public)
