"""The coordinate check: under muP sizes stay as the width grows, without it they grow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.bench.bench_coordinates import bench_coordinates, growth, measure_coordinates
from altup_moe.bench.options import CoordinatesBench

FLAT = 0.2
"""How far a size at the largest width may be from that at the smallest."""
SMALL = CoordinatesBench(hidden_sizes=(64, 256), num_layers=2, seeds=1, steps=3)


@pytest.mark.slow
def test_sizes_are_flat_under_mup_alone() -> None:
    found = measure_coordinates(SMALL)
    mup, standard = (found[each] for each in ("mup", "standard"))
    names = [name for name in mup[64] if "moved" not in name]  # too few coefficients of one seed to say
    assert {f"layer 2 {part}" for part in ("attention", "feed-forward", "stream")} <= set(names)
    assert {"embedding", "layer 2 router, by updates", "logits, by updates"} <= set(names)
    for name in names:
        assert growth(mup, name) == pytest.approx(1, abs=FLAT), name
    assert growth(standard, "layer 2 stream") > 3


MODELS = [
    CoordinatesBench(width=1, moe_experts=0),
    CoordinatesBench(width=2, moe_experts=4),
    CoordinatesBench(width=4, moe_experts=32),
    CoordinatesBench(width=8, moe_experts=0),
    CoordinatesBench(width=2, moe_experts=0, variant="dynamic"),
    CoordinatesBench(width=4, moe_experts=4, variant="hc"),
    # A network that computes coefficients from the stream, and gates for every feature.
    CoordinatesBench(width=4, moe_experts=4, variant="mhc"),
    CoordinatesBench(width=4, moe_experts=4, variant="gated_residual"),
]


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS, ids=lambda o: f"{o.variant}-k{o.width}-e{o.moe_experts}")
def test_d_64_to_512(model: CoordinatesBench) -> None:
    found = measure_coordinates(replace(model, parametrizations=("mup",), seeds=16))["mup"]
    assert list(found) == [64, 128, 256, 512]
    sizes = {name: growth(found, name) for name in found[64]}
    # How far a coefficient moves is how often the signs of its gradients agree. At K = 4 and 8 these agree less often
    # at d = 512 than at 64, and at 1024 as often as at 512 (docs/guides/mup.md). What muP forbids is that it grows.
    shrinks = {"coefficients predict, moved"} if model.variant == "altup" and model.width >= 4 else set()
    least = {name: 0.6 if name in shrinks else 1 - FLAT for name in sizes}
    assert {name: round(size, 2) for name, size in sizes.items() if not least[name] <= size <= 1 + FLAT} == {}


def test_the_file_keeps_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "coordinates.json"
    tiny = replace(SMALL, hidden_sizes=(32, 64), steps=1, moe_experts=0, seq_length=8, out=str(file))
    for width in (1, 2, 1):
        assert bench_coordinates(replace(tiny, width=width)) == 0
    assert "last / first" in capsys.readouterr().out
    points = json.loads(file.read_text())["points"]
    assert {point["family"] for point in points} == {"K 1, no experts", "K 2, no experts"}
    keys = [(p["family"], p["parametrization"], p["width"], p["name"]) for p in points]
    assert len(set(keys)) == len(keys)
