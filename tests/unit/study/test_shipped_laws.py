"""The committed text of a shipped ladder's law is what its committed rows give, up to a bootstrap's last digits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from altup_moe.cli import main

RESULTS = Path(__file__).parents[3] / "configs" / "study" / "results"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
TOLERANCE = 0.02
"""Of numbers, relatively: another processor sums in another order, and a draw's fit may end elsewhere."""


@pytest.mark.long
@pytest.mark.parametrize("study", sorted(path.parent.name for path in RESULTS.glob("*/law.txt")))
def test_the_rows_give_the_text(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "law", str(RESULTS / study), "--shared"]) == 0
    got, kept = capsys.readouterr().out, (RESULTS / study / "law.txt").read_text()
    assert NUMBER.sub("#", got).split() == NUMBER.sub("#", kept).split()
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (got, kept)]
    assert numbers[0] == pytest.approx(numbers[1], rel=TOLERANCE, abs=TOLERANCE)
