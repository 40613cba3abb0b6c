"""Exported and imported models answer alike under transformers' `generate` and ours, everything taken from files.

`pytest -s -m long tests/unit/inference/test_alike.py` prints the table of 200 prompts each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.inference.alike import MODELS, Counts, counts


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_few_prompts(name: str, tmp_path: Path) -> None:
    found = counts(MODELS[name](tmp_path), 16)
    assert found == Counts(16, 16, 16, 16)


@pytest.mark.long
def test_two_hundred_prompts(tmp_path: Path) -> None:
    found = {name: counts(make(tmp_path / name), 200) for name, make in MODELS.items()}
    print(f"\n{'':<28}{'alone':>8}{'batched':>9}{'texts':>7}")
    for name, one in found.items():
        print(f"{name:<28}{one.alone:>8}{one.batched:>9}{one.texts:>7}  of {one.asked}")
    assert set(found.values()) == {Counts(200, 200, 200, 200)}
