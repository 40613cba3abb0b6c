"""The picture shows each kind of span at its place, in its colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altup_moe.timeline.picture import _BAND, _COLOURS, _WAIT, write_picture
from altup_moe.timeline.records import Recording
from tests.unit.timeline.spans_for_tests import two_steps


def pixels(path: Path, colour: str) -> np.ndarray:
    """Columns (share of the width) that hold the colour, above the legend."""
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape[1] == 1600
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.flatnonzero((np.abs(image[: -image.shape[0] // 4] - wanted) == 0).all(-1).any(0)) / 1600


def test_spans_lie_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "step.png"
    write_picture(path, [two_steps(0), two_steps(1)])
    attention, experts = pixels(path, _COLOURS["attention"]), pixels(path, _COLOURS["experts"])
    wait, band = pixels(path, _WAIT), pixels(path, _BAND)
    # Attention 0-2 ms, then the flight 2-6 ms which ends with the wait 5-6 ms, then the experts 6-7 ms.
    assert attention.max() <= band.min() + 0.005
    assert wait.max() == pytest.approx(band.max(), abs=0.005)
    assert wait.max() <= experts.min() + 0.005
    assert np.ptp(band) == pytest.approx(4 * np.ptp(wait), rel=0.05)


def test_another_step_is_another_picture(tmp_path: Path) -> None:
    write_picture(tmp_path / "step.png", [two_steps()], step=1, title="the second")
    assert pixels(tmp_path / "step.png", _COLOURS["mix"]).size
    assert not pixels(tmp_path / "step.png", _COLOURS["experts"]).size
    assert not pixels(tmp_path / "step.png", _WAIT).size


def test_a_step_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank 4 recorded 2 steps; there is no step 2"):
        write_picture(tmp_path / "step.png", [two_steps(4)], step=2)
    with pytest.raises(ValueError, match="rank 1 recorded 0 steps"):
        write_picture(tmp_path / "step.png", [Recording(1)])
    with pytest.raises(ValueError, match="no recordings"):
        write_picture(tmp_path / "step.png", [])
