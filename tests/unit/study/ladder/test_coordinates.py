"""Coordinate checks: the last step counts, growth is found, and what is no such file is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from altup_moe.config import UserError
from altup_moe.study.ladder.coordinates import exponent, read_coordinates
from tests.ladders import write_coordinates

POINT = {"family": "dense", "parametrization": "mup", "width": 32, "step": 1, "name": "mlp", "rms": 0.5}


def test_a_panel_has_the_last_step_of_a_family(tmp_path: Path) -> None:
    write_coordinates(tmp_path)
    panels = read_coordinates(tmp_path)
    said = [(panel.family, panel.parametrization, panel.step) for panel in panels]
    assert said == [(family, name, 4) for family in ("dense", "altup-k2") for name in ("standard", "mup")]
    assert [width for width, _ in panels[0].lines["mlp"]] == [32, 64, 128, 256]
    assert exponent(panels[0].lines["mlp"]) == pytest.approx(0.5)
    assert exponent(panels[1].lines["mlp"]) == pytest.approx(0)
    assert exponent(panels[0].lines["mlp"][:1]) is None


def test_a_study_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_coordinates(tmp_path) == ()


def test_values_that_no_logarithm_has_are_counted(tmp_path: Path) -> None:
    points = [{**POINT, "rms": rms} for rms in (0.5, 0, None)]
    (tmp_path / "coordinates.json").write_text(json.dumps({"points": points}))
    (panel,) = read_coordinates(tmp_path)
    assert panel.lines == {"mlp": [(32, 0.5)]}
    assert panel.left_out == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "points=None; a list of points would fit"),
        ({"points": [3]}, "points.0=3; an object with family, parametrization"),
        ({"points": [POINT, {**POINT, "width": 0}]}, "points.1.width=0; a number above 0 would fit"),
        ({"points": [{**POINT, "rms": "big"}]}, "points.0.rms='big'; a number would fit"),
        ({"points": [{**POINT, "step": True}]}, "points.0.step=True; a number would fit"),
        (
            {"points": [{key: value for key, value in POINT.items() if key != "name"}]},
            "points.0.name=None; text would fit",
        ),
    ],
)
def test_what_is_no_check_is_one_line(tmp_path: Path, content: Any, says: str) -> None:
    (tmp_path / "coordinates.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        read_coordinates(tmp_path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
