"""Datasets of the hub: what is asked of `datasets`, and how its answers and failures come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from altup_moe.config import DataError, UserError
from altup_moe.data.sources import LeftOut, hub_documents


def _answer(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]] | Exception) -> list[tuple[Any, ...]]:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, Any]]:
        asked.append((args, kwargs))
        if isinstance(rows, Exception):
            raise rows
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_rows_of_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _answer(monkeypatch, [{"body": "a"}, {"body": ""}, {"body": "b"}])
    found = list(hub_documents("some/set", "body", tmp_path, LeftOut(), split="test", config="raw"))
    assert [(d.source, d.text) for d in found] == [("some/set (test) row 0", "a"), ("some/set (test) row 2", "b")]
    assert asked == [(("some/set", "raw"), {"split": "test", "streaming": True, "cache_dir": str(tmp_path)})]


@pytest.mark.parametrize(
    ("rows", "error", "problem"),
    [
        ([], DataError, r"some/set \(train\): has no text"),
        ([{"body": "x"}], DataError, "row 0 has no column 'text'; it has body"),
        ([{"text": "x"}, {"text": None}], DataError, "row 1 column 'text' is empty, not text"),
        (ConnectionError("no route\nmore"), UserError, r"some/set: .*\(no route\)"),
    ],
)
def test_failures_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]] | Exception,
    error: type[UserError],
    problem: str,
) -> None:
    _answer(monkeypatch, rows)
    with pytest.raises(error, match=problem):
        list(hub_documents("some/set", "text", tmp_path, LeftOut()))


@pytest.mark.parametrize("name", ["./missing", "a/b/c", "missing.jsonl", "data/*"])
def test_paths_never_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked = _answer(monkeypatch, [])
    with pytest.raises(UserError, match="no such file"):
        list(hub_documents(name, "text", tmp_path, LeftOut()))
    assert asked == []
