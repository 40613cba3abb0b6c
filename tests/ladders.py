"""Made-up rows of a ladder whose laws are known, as `altup-moe study run` writes them, and a coordinate check."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from altup_moe.study.records import StudyRow
from altup_moe.study.scaling.records import Law
from tests import studies

SIZES = {32: 1e5, 48: 3e5, 64: 8e5, 96: 2.4e6}
"""model.hidden_size -> parameters without tables."""
TOKENS = (10, 20, 40)
LAWS = {"dense": Law(1.8, 60.0, 0.35, 90.0, 0.33), "altup-k2": Law(1.8, 54.0, 0.35, 90.0, 0.33)}
SLOWER = {"dense": 1.0, "altup-k2": 1.1, "moe": 1.6}
"""Seconds of a step of a family over dense."""
MORE = {**LAWS, "moe": Law(1.8, 50.0, 0.35, 92.0, 0.33)}
RATES = (1e-3, 2e-3, 4e-3)


def ladder(edge: bool = False, laws: Mapping[str, Law] = LAWS) -> Iterator[StudyRow]:
    """Families of four sizes, three numbers of tokens, three seeds; losses differ by 0.004 nats between seeds.

    edge: the largest size's best rate lies beyond those that were tried.
    """
    draw = random.Random(0)
    for family, law in laws.items():
        for size, n in SIZES.items():
            for rate in RATES:
                lowest = 9e-3 if edge and size == 96 else 2e-3
                loss = 3.0 + math.log(rate / lowest) ** 2
                row = studies.row(f"{family}-d{size}-learning_rate-{rate:g}", 1, loss, None, family=family)
                yield replace(row, role="tuning", overrides=_keys(size, rate))
            for seed in (1, 2, 3):
                common = draw.gauss(0, 0.003)
                for tokens in TOKENS:
                    d = tokens * n
                    loss = law.loss(n, d) + common + draw.gauss(0, 0.002)
                    ms = 2e-8 * n * 8192 * SLOWER[family] * draw.uniform(0.99, 1.01)
                    row = studies.row(f"{family}-d{size}-t{tokens}", seed, loss, ms, family=family)
                    yield replace(
                        row,
                        overrides=_keys(size, 2e-3),
                        active_parameters=int(n) + 1000,
                        table_parameters=1000,
                        flops_per_token=6 * n,
                        tokens=int(d),
                        steps=int(d) // 8192,
                    )


def _keys(size: int, rate: float) -> dict[str, object]:
    return {
        "model.hidden_size": size,
        "optim.learning_rate": rate,
        "optim.min_learning_rate": rate / 10,
        "optim.schedule": "wsd",
        "optim.decay_steps": 10,
    }


def write_coordinates(directory: Path) -> None:
    """Two families under two parametrizations: what grows as the root of the width, and what does not."""
    points = [
        {"family": family, "parametrization": name, "width": width, "step": step, "name": part, "rms": rms}
        for family in ("dense", "altup-k2")
        for name in ("standard", "mup")
        for width in (32, 64, 128, 256)
        for step in (0, 4)
        for i, part in enumerate(("embedding", "attention", "mlp", "final norm", "logits"))
        for rms in (
            (i + 1) * 0.3 * (width / 32) ** (0.5 if name == "standard" and step and part != "embedding" else 0),
        )
    ]
    (directory / "coordinates.json").write_text(json.dumps({"parametrization": "mup", "points": points}))
