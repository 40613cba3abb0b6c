"""One good checkpoint damaged in many ways: opening and verifying it names the damaged file, and does nothing else.

It has a MoE model's bf16 weights, their fp32 copies and Adam's moments in five files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from altup_moe.checkpoint.manifest import DIGEST, MANIFEST
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import LATEST, find_checkpoint
from altup_moe.config import DataError
from altup_moe.config.run_directory import checkpoints_dir
from tests.unit.checkpoint.damaged import (
    MOMENTS,
    WEIGHTS,
    header_end,
    open_and_verify,
    refused,
    rewrite,
)

FILES = (WEIGHTS, MOMENTS, MANIFEST, DIGEST)
Damage = Callable[[Path], object]


def flipped(raw: bytes, place: int, bit: int) -> bytes:
    return raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]


def region(raw: bytes, part: str) -> range:
    return {"length": range(8), "header": range(8, header_end(raw)), "data": range(header_end(raw), len(raw))}[part]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("part", ["length", "header", "data"])
@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS])
def test_one_bit_of_a_shard(spoilt: Path, name: str, part: str, seed: int) -> None:
    draw = np.random.default_rng([seed, len(part)])
    path = find_checkpoint(spoilt) / name
    rewrite(path, lambda raw: flipped(raw, int(draw.choice(region(raw, part))), int(draw.integers(8))))
    refused(spoilt, name, "SHA-256 differs" if part == "data" else "")


@pytest.mark.parametrize("seed", range(20))
def test_one_bit_of_the_manifest(spoilt: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    path = find_checkpoint(spoilt) / MANIFEST
    rewrite(path, lambda raw: flipped(raw, int(draw.integers(len(raw))), int(draw.integers(8))))
    refused(spoilt, MANIFEST, DIGEST)


@pytest.mark.parametrize("place", range(80))
def test_one_bit_of_the_manifests_hash(spoilt: Path, place: int) -> None:
    path = find_checkpoint(spoilt) / DIGEST
    rewrite(path, lambda raw: flipped(raw, place, place % 8))
    with pytest.raises(DataError, match=DIGEST):
        open_and_verify(spoilt)


@pytest.mark.parametrize("place", range(13))
def test_one_bit_of_latest(spoilt: Path, place: int) -> None:
    rewrite(checkpoints_dir(spoilt) / LATEST, lambda raw: flipped(raw, place, 0))
    refused(spoilt, LATEST, "which is no complete checkpoint")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0.0, 0.1, 0.999])
def test_truncated(spoilt: Path, name: str, left: float) -> None:
    rewrite(find_checkpoint(spoilt) / name, lambda raw: raw[: int(left * len(raw))])
    refused(spoilt, name)


@pytest.mark.parametrize("more", [b"\0", b"\n", b" ", bytes(4096)])
@pytest.mark.parametrize("name", FILES)
def test_lengthened(spoilt: Path, name: str, more: bytes) -> None:
    rewrite(find_checkpoint(spoilt) / name, lambda raw: raw + more)
    refused(spoilt, name)


def test_latest_shortened_or_lengthened(spoilt: Path) -> None:
    for change in (lambda raw: raw[:-2], lambda raw: raw + b"0", lambda raw: b""):
        (checkpoints_dir(spoilt) / LATEST).write_bytes(change(b"step_00000003\n"))
        refused(spoilt, LATEST)


@pytest.mark.parametrize("name", [WEIGHTS, MOMENTS, DIGEST])
def test_deleted(spoilt: Path, name: str) -> None:
    (find_checkpoint(spoilt) / name).unlink()
    refused(spoilt, name, "is missing")


def test_manifest_deleted(spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    (directory / MANIFEST).unlink()
    refused(spoilt, LATEST, "which is no complete checkpoint")
    with pytest.raises(DataError, match=f"{MANIFEST}: is missing"):
        Checkpoint(directory)


def test_latest_deleted(spoilt: Path) -> None:
    """The same as a first save killed just before its end: the newest complete checkpoint is taken."""
    (checkpoints_dir(spoilt) / LATEST).unlink()
    open_and_verify(spoilt)


# Files


def swap(directory: Path) -> None:
    a, b = directory / WEIGHTS, directory / "rank_00001_001.safetensors"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def rename(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "rank_00000_009.safetensors")


def link(directory: Path) -> None:
    moved = directory.parent / "moved.safetensors"
    (directory / WEIGHTS).rename(moved)
    (directory / WEIGHTS).symlink_to(moved)


def in_place(make: Callable[[Path], object]) -> Damage:
    """Something else where a shard was."""

    def damage(directory: Path) -> None:
        (directory / WEIGHTS).unlink()
        make(directory / WEIGHTS)

    return damage


DAMAGES: dict[str, tuple[Damage, str, str]] = {
    "two shards swapped": (swap, WEIGHTS, "bytes; "),
    "renamed": (rename, WEIGHTS, "is missing"),
    "another file": (lambda d: (d / "notes.txt").write_text("x"), "notes.txt", "is not part of the checkpoint"),
    "a hidden file": (lambda d: (d / ".x").write_text("x"), ".x", "is not part of the checkpoint"),
    "another shard": (lambda d: shutil.copy(d / WEIGHTS, d / "b.safetensors"), "b.safetensors", "is not part"),
    "another directory": (lambda d: (d / "sub").mkdir(), "sub", "is no plain file"),
    "another link": (lambda d: (d / "l").symlink_to(WEIGHTS), "l", "is no plain file"),
    "a link to its own bytes": (link, WEIGHTS, "is no plain file"),
    "a link to nothing": (in_place(lambda p: p.symlink_to("nothing")), WEIGHTS, "is no plain file"),
    "a pipe": (in_place(os.mkfifo), WEIGHTS, "is no plain file"),
    "a directory": (in_place(Path.mkdir), WEIGHTS, "is no plain file"),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.timeout(20)
def test_other_files(spoilt: Path, name: str) -> None:
    damage, file, says = DAMAGES[name]
    damage(find_checkpoint(spoilt))
    refused(spoilt, file, says)


@pytest.mark.parametrize("name", [MANIFEST, DIGEST])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("../moved")])
@pytest.mark.timeout(20)
def test_no_plain_manifest(spoilt: Path, name: str, make: Callable[[Path], object]) -> None:
    directory = find_checkpoint(spoilt)
    (directory / name).rename(directory.parent / "moved")
    make(directory / name)
    with pytest.raises(DataError, match=name):
        Checkpoint(directory)
