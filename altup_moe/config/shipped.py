"""The configuration files that come with the package, found by name: configurations, recipes, studies and clusters.

A checkout has them in ``configs/``, an installed wheel in ``altup_moe/configs/``.
"""

from __future__ import annotations

import difflib
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from altup_moe.config.errors import UserError
from altup_moe.config.hub_directory import OWN_TYPES, USE_THE_RUN, model_type
from altup_moe.config.keys import nearest_key

Kind = Literal["configuration", "recipe", "study", "cluster"]

_PACKAGE = Path(__file__).parents[1]
_INSTALLED, _CHECKOUT = _PACKAGE / "configs", _PACKAGE.parent / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT
"""Directory of the shipped files."""
SCHEMA_FILE = "altup_moe.schema.json"
"""Name of the JSON schema of all kinds of files, in that directory."""
FOLDERS: dict[str, Kind] = {"": "configuration", "streams": "configuration", "study": "study", "clusters": "cluster"}
"""Folders in that directory, and the kind of their files. Recipes lie beside configurations."""
KINDS: tuple[Kind, ...] = ("configuration", "recipe", "study", "cluster")
"""In the order in which they are listed."""
USES: dict[Kind, str] = {
    "configuration": "altup-moe train {name}",
    "recipe": "altup-moe recipe {name}",
    "study": "altup-moe study run {name}",
    "cluster": "altup-moe plan CONFIG --cluster {name}",
}
"""The command that takes each kind."""
LIST_COMMAND = "altup-moe configs"
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class ShippedFile:
    """A file that comes with the package."""

    name: str
    """The file's name without its ending; no two files have the same."""
    kind: Kind
    path: Path

    @property
    def use(self) -> str:
        """The command line that uses it."""
        return USES[self.kind].format(name=self.name)

    @property
    def summary(self) -> str:
        """First sentence of the comment at the file's head."""
        words = " ".join(_head_comment(self.path))
        return re.split(r"[.:]?$|\.\s|(?<=\?)\s", words, maxsplit=1)[0]


def shipped_files() -> list[ShippedFile]:
    """All shipped files: configurations, recipes, studies, clusters, each by name."""
    found = [_shipped(path, kind) for folder, kind in FOLDERS.items() for path in (CONFIGS / folder).glob("*.yaml")]
    return sorted(found, key=lambda file: (KINDS.index(file.kind), file.name))


def find_file(given: str | Path, kind: Kind) -> Path:
    """The file that a user named: a path that exists, or else a shipped file by its name, with or without ``.yaml``.

    Args:
        kind: what the file must be. A path is not looked into; a shipped file of another kind is an error.

    Raises:
        UserError: no such file (the nearest beside it, or the nearest shipped one, is named), or it is a directory.
    """
    path = Path(given)
    if path.exists() and not path.is_dir():
        return path
    files = {file.name: file for file in shipped_files()}
    name = path.stem if path.suffix in _YAML else path.name
    if name in files and path.name == str(given):
        if files[name].kind != kind:
            raise UserError(f"{given}: is a shipped {files[name].kind}; the command for it is {files[name].use}")
        return files[name].path
    if path.is_dir():
        run_config = path / "config.yaml"
        fits = f"; its configuration, {run_config}, would fit" if run_config.is_file() else ""
        hub = model_type(path)
        if hub in OWN_TYPES:
            fits = f"; it {USE_THE_RUN}, by its config.yaml"
        elif hub is not None:
            fits = f"; it is a Hugging Face model: type altup-moe convert import {shlex.quote(str(given))} RUN"
        raise UserError(f"{given}: Is a directory, where a file is expected{fits}")
    if beside := _similar_beside(path):
        raise UserError(f"{given}: No such file or directory; the nearest file there is {beside}")
    nearest = nearest_key(name, [file.name for file in files.values() if file.kind == kind])
    raise UserError(
        f"{given}: No such file or directory; the nearest shipped {kind} is {nearest} ({LIST_COMMAND} lists all)"
    )


def _similar_beside(path: Path) -> Path | None:
    """The YAML file in the same directory whose name is most like the path's; None if none is like it."""
    files = {file.stem: file for ending in _YAML for file in path.parent.glob(f"*{ending}")}
    found = difflib.get_close_matches(path.stem, files, n=1, cutoff=0.75)
    return files[found[0]] if found else None


def _shipped(path: Path, kind: Kind) -> ShippedFile:
    if kind == "configuration" and re.search("^pretrain:", path.read_text(encoding="utf-8"), re.MULTILINE):
        kind = "recipe"
    return ShippedFile(path.stem, kind, path)


def _head_comment(path: Path) -> list[str]:
    """Lines of the comment at a file's head, without the world size and the indented command lines."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").removeprefix(" ")
        if not text.startswith(("world size:", " ")):
            lines.append(text)
    return lines
