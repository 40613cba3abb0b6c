"""Exported and imported models answer alike under transformers' `generate` and ours, everything taken from files.

`pytest -s -m long tests/unit/inference/test_alike.py` prints a line of 200 prompts each.
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
@pytest.mark.parametrize("name", MODELS)
def test_two_hundred_prompts(name: str, tmp_path: Path) -> None:
    found = counts(MODELS[name](tmp_path), 200)
    figures = f"alone {found.alone}, batched {found.batched}, printed {found.texts} of {found.asked}"
    print(f"\n{name:<28}{figures}")
    assert found == Counts(200, 200, 200, 200)
