"""A whole model from the parts of several ranks, and what the parts may lack."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from altup_moe.checkpoint.assemble import assemble
from altup_moe.checkpoint.store import Manifest, RankState, save
from altup_moe.config import DataError


def piece(name: str, shape: tuple[int, ...], box: tuple, local: tuple) -> dict:
    return {"name": name, "shape": shape, "box": box, "local": local}


WHOLE = {
    "rows": torch.randn(6, 4),
    "columns": torch.randn(3, 8),
    "q": torch.randn(4, 5),
    "k": torch.randn(2, 5),
    "norm": torch.randn(7),
    "bf16": torch.randn(4, 2).bfloat16(),
    "scalar": torch.randn(1),
}


def rank(t: int) -> RankState:
    """Tensor rank t of 2: halves of rows and columns, [q; k] fused, one norm held by both, optimizer state besides."""
    q, k = WHOLE["q"][2 * t : 2 * t + 2], WHOLE["k"][t : t + 1]
    tensors: dict[str, Tensor] = {
        "model/0.rows": WHOLE["rows"][3 * t : 3 * t + 3],
        "model/0.columns": WHOLE["columns"][:, 4 * t : 4 * t + 4],
        "model/0.fused": torch.cat([q, k]),
        "model/0.norm": WHOLE["norm"],
        "model/1.bf16": WHOLE["bf16"],
        "model/1.scalar": WHOLE["scalar"],
        "optimizer/0/0/0/main": torch.randn(3),
    }
    pieces = {
        "model/0.rows": [piece("rows", (6, 4), ((3 * t, 3 * t + 3), (0, 4)), ((0, 3), (0, 4)))],
        "model/0.columns": [piece("columns", (3, 8), ((0, 3), (4 * t, 4 * t + 4)), ((0, 3), (0, 4)))],
        "model/0.fused": [
            piece("q", (4, 5), ((2 * t, 2 * t + 2), (0, 5)), ((0, 2), (0, 5))),
            piece("k", (2, 5), ((t, t + 1), (0, 5)), ((2, 3), (0, 5))),
        ],
        "model/0.norm": [piece("norm", (7,), ((0, 7),), ((0, 7),))],
        "model/1.bf16": [piece("bf16", (4, 2), ((0, 4), (0, 2)), ((0, 4), (0, 2)))],
        "model/1.scalar": [piece("scalar", (1,), ((0, 1),), ((0, 1),))],
    }
    return RankState(tensors, {"pieces": pieces, "scheduler_steps": 1})


def write(run: Path, ranks: list[RankState]) -> Path:
    """A checkpoint of these ranks, each saved by a thread."""
    barrier = threading.Barrier(len(ranks), timeout=30)
    manifest = Manifest(1, 8, 0, len(ranks), "", {})
    with ThreadPoolExecutor(len(ranks)) as pool:
        calls = [
            pool.submit(save, run, manifest, number, state, lambda: barrier.wait() and None, 1)
            for number, state in enumerate(ranks)
        ]
        return next(path for path in [call.result() for call in calls])


def test_parts_of_several_ranks_make_the_whole(tmp_path: Path) -> None:
    # Four ranks: tensor ranks 0 and 1, and their data-parallel replicas.
    whole = assemble(write(tmp_path, [rank(0), rank(1), rank(0), rank(1)]))
    assert whole.keys() == WHOLE.keys()
    for name, value in WHOLE.items():
        assert whole[name].dtype == value.dtype
        assert torch.equal(whole[name], value), name


@pytest.mark.parametrize("hole", ["rows", "columns", "q"])
def test_a_hole_is_named(hole: str, tmp_path: Path) -> None:
    second = rank(1)
    for pieces in second.meta["pieces"].values():
        pieces[:] = [part for part in pieces if part["name"] != hole]
    with pytest.raises(DataError, match=rf"{hole}: .* hold {WHOLE[hole].numel() // 2} of {WHOLE[hole].numel()} "):
        assemble(write(tmp_path, [rank(0), second]))


def test_a_replica_does_not_fill_a_hole(tmp_path: Path) -> None:
    """Counting elements alone would take two copies of one half for a whole."""
    with pytest.raises(DataError, match="rows: "):
        assemble(write(tmp_path, [rank(0), rank(0)]))


@pytest.mark.parametrize("file", ["rank_00001.safetensors", "rank_00001.json", "manifest.json"])
def test_a_missing_file_is_named(file: str, tmp_path: Path) -> None:
    path = write(tmp_path, [rank(0), rank(1)])
    (path / file).unlink()
    with pytest.raises(DataError, match=file):
        assemble(path)


@pytest.mark.parametrize("length", [0, 4, 20, -1])
def test_a_truncated_file_is_named(length: int, tmp_path: Path) -> None:
    file = write(tmp_path, [rank(0), rank(1)]) / "rank_00001.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(DataError, match=r"rank_00001\.safetensors"):
        assemble(file.parent)
