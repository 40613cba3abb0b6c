"""List the files that come with the package, copy one to start from, or print the JSON schema of such files."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.command import Command
from altup_moe.config.errors import UserError
from altup_moe.config.files import write_bytes
from altup_moe.config.keys import nearest_key
from altup_moe.config.shipped import LIST_COMMAND, ShippedFile, shipped_files

WIDTH = 100


@dataclass(frozen=True)
class ConfigsOptions:
    """List the shipped configurations, recipes, studies and clusters; with a name, copy that file."""

    name: str | None = None
    """Shipped file to copy; None lists all."""
    dest: Path | None = None
    """File or directory to copy to; None is NAME.yaml here. A copy FILE.yaml trains in runs/FILE."""
    overwrite: bool = False
    """Replace a file that is there."""
    schema: bool = False
    """Print the JSON schema of all these files, for editors."""
    json: bool = False
    """List as JSON objects: name, kind, path, summary, use."""


def configs(o: ConfigsOptions) -> int:
    """List, copy, or print the schema."""
    if o.schema:
        if o.name is not None:
            raise UserError(f"{o.name}: one schema holds for all files; --schema takes no name")
        from altup_moe.commands.file_schema import file_schema

        print(schema_text(file_schema()), end="")
    elif o.name is not None:
        print(copy(o.name, o.dest, o.overwrite))
    elif o.json:
        for file in shipped_files():
            print(json.dumps({**vars(file), "path": str(file.path), "summary": file.summary, "use": file.use}))
    else:
        print("\n".join(listing(shipped_files())))
    return 0


def listing(files: Sequence[ShippedFile]) -> list[str]:
    """The files by kind: name and summary, with the command that takes each kind."""
    width = max(len(file.name) for file in files) + 2
    lines: list[str] = []
    for kind in dict.fromkeys(file.kind for file in files):
        of_kind = [file for file in files if file.kind == kind]
        lines += ["", f"{kind}: {of_kind[0].use.replace(of_kind[0].name, 'NAME')}"]
        for file in of_kind:
            first, *rest = textwrap.wrap(file.summary, WIDTH - width - 2)
            lines += [f"  {file.name:<{width}}{first}", *(" " * (width + 2) + line for line in rest)]
    hint = f"{LIST_COMMAND} NAME [FILE] copies one to start from; --schema prints their JSON schema."
    return [*lines[1:], "", hint]


def copy(name: str, dest: Path | None, overwrite: bool) -> Path:
    """Copy a shipped file. Returns the copy's path.

    A copy of another name trains in a run directory of that name; otherwise it would go on with the original's run.

    Args:
        dest: file or directory; None is the current directory.

    Raises:
        UserError: there is no shipped file of that name, the copy would replace a file, or it cannot be written.
    """
    files = {file.name: file for file in shipped_files()}
    wanted = name.removesuffix(".yaml")
    if wanted not in files:
        raise UserError(f"{name}: no shipped file; nearest is {nearest_key(wanted, files)} ({LIST_COMMAND} lists all)")
    target = dest or Path()
    target = target / f"{wanted}.yaml" if target.is_dir() else target
    if target.exists() and not overwrite:
        raise UserError(f"{target}: exists; name another file, or give --overwrite to replace it")
    try:
        text = files[wanted].path.read_text(encoding="utf-8")
        own = re.compile(rf"(?<=run_dir: )runs/{re.escape(wanted)}$", re.MULTILINE)
        write_bytes(target, own.sub(lambda _: _scalar(f"runs/{target.stem}"), text).encode())
    except OSError as error:
        raise UserError(f"{target}: {error.strerror or error}") from None
    return target


def _scalar(text: str) -> str:
    """A string as YAML, in quotes only if it needs them."""
    return text if re.fullmatch(r"[\w./-]+", text) else json.dumps(text, ensure_ascii=False)


def schema_text(schema: object) -> str:
    """A schema as the text of its file."""
    return json.dumps(schema, indent=1) + "\n"


CONFIGS = Command(
    "configs",
    "[NAME [FILE]] [options]",
    ["altup-moe configs", "altup-moe configs quickstart mine.yaml"],
    ConfigsOptions,
    configs,
    positional=["name", "dest"],
)
main = CONFIGS.main
