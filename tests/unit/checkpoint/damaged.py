"""How checkpoints are spoilt, and how it is checked that they are refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.manifest import DIGEST, MANIFEST
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import DataError
from tests.processes import open_below

WEIGHTS, MOMENTS = "rank_00000_000.safetensors", "rank_00001_000.safetensors"


def open_and_verify(run: Path) -> None:
    with Checkpoint(find_checkpoint(run)) as checkpoint:
        checkpoint.verify()


def traces(directory: Path) -> dict[str, object]:
    """Everything that lies below a directory, and the bytes of its files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() and not path.is_symlink() else "other"
        for path in directory.rglob("*")
    }


def refused(run: Path, names: str, says: str = "") -> None:
    """Check that a damaged checkpoint is refused by name, and that nothing was changed, started or left open."""
    before, threads = traces(run.parent), set(threading.enumerate())
    with pytest.raises(DataError) as caught:
        open_and_verify(run)
    assert Path(caught.value.file).name == names
    assert says in caught.value.problem
    assert traces(run.parent) == before
    # Not their numbers: what an earlier test has left in this process may end at any time.
    assert open_below(run) == []
    assert set(threading.enumerate()) <= threads


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def header_end(raw: bytes) -> int:
    return 8 + int.from_bytes(raw[:8], "little")


def seal(directory: Path, manifest: str | dict[str, Any], hashes: bool = True) -> None:
    """Write a manifest and its hash; sizes and hashes of the files as they now are."""
    if isinstance(manifest, dict):
        for name, entry in manifest["files"].items() if hashes else ():
            if (directory / name).is_file():
                raw = (directory / name).read_bytes()
                entry.update(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        manifest = json.dumps(manifest)
    (directory / MANIFEST).write_text(manifest)
    (directory / DIGEST).write_text(f"{hashlib.sha256(manifest.encode()).hexdigest()}  {MANIFEST}\n")


def content(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_text())


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    header = json.loads(raw[8 : header_end(raw)])
    header = change(header) or header
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[header_end(raw) :])
