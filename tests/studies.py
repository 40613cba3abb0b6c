"""Made-up rows of a study, as likely as a real one's: three seeds, dense sizes, wide models, experts, failures."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

from altup_moe.study.records import CurvePoint, Experts, Hardware, Latency, Quality, Spread, StudyRow

MACHINE = Hardware("Some CPU 2.0 GHz", 2, 1, 1, "cpu", "2.13.0", "Linux 6.1 x86_64")
BITS = 0.42
"""Bits per byte of a nat a token: 1 / (ln 2 * 3.43 bytes a token)."""


def spread(median: float) -> Spread:
    """A measured time."""
    return Spread(median, 1.2 * median, 0.95 * median, 1.5 * median, 20)


def row(
    name: str,
    seed: int = 0,
    loss: float = 3.0,
    ms: float | None = 100.0,
    *,
    family: str = "dense",
    parameters: int | None = 10_000_000,
    active: int | None = None,
    prefill: float | None = None,
    decode: float | None = None,
    hardware: Hardware = MACHINE,
    width: int | None = None,
) -> StudyRow:
    """A finished row; without latencies if `ms` is None, of another size than the study's base if it has a width."""
    latency = None
    if ms is not None:
        prefilled, decoded = (None if t is None else spread(t) for t in (prefill, decode))
        latency = Latency(spread(ms), 8192 / ms * 1e3, 1.5, prefilled, decoded)
    return StudyRow(
        study="width",
        name=name,
        family=family,
        seed=seed,
        config_hash="0" * 64,
        overrides=({"altup.width": 2} if family != "dense" else {}) | ({"model.hidden_size": width} if width else {}),
        commit="0123456789ab",
        hardware=hardware,
        status="done",
        parameters=parameters,
        active_parameters=active or parameters,
        flops_per_token=None if parameters is None else 6.0 * (active or parameters),
        steps=400,
        tokens=400 * 8192,
        train_seconds=60.0,
        quality=Quality(loss, BITS * loss, loss - 0.05),
        latency=latency,
    )


def failed(name: str, seed: int = 0, family: str = "moe", reason: str = "it did not fit") -> StudyRow:
    """A row without figures."""
    empty = row(name, seed, family=family, ms=None, parameters=None)
    nothing = {"flops_per_token": None, "steps": None, "tokens": None, "train_seconds": None}
    return replace(empty, status="failed", reason=reason, quality=None, **nothing)


def _curve(loss: float, draw: random.Random) -> list[CurvePoint]:
    points = []
    for step in range(5, 401, 5):
        at = loss + 6.5 * math.exp(-step / 25) + 1.2 * (1 - step / 400) ** 2
        valid = at + 0.03 if step % 50 == 0 else None
        points.append(CurvePoint(step, step * 8192, at + draw.gauss(0, 0.04), valid))
    return points


def _load(layers: int, experts: int, draw: random.Random) -> list[list[float]]:
    """Every other layer has experts; one of them is hardly used."""
    found = []
    for layer in range(layers):
        weights = [draw.gammavariate(4, 1) for _ in range(experts)] if layer % 2 else []
        if layer == 3:
            weights[2] = 0.01
        found.append([w / sum(weights) for w in weights])
    return found


def study(seed: int = 0) -> list[StudyRow]:
    """Thirty finished rows and two that failed."""
    draw = random.Random(seed)
    models = [
        # name, family, loss, step ms, millions of parameters, active, experts
        ("dense-s", "dense", 3.52, 60.0, 5.1, 5.1, 0),
        ("dense-m", "dense", 3.31, 110.0, 11.3, 11.3, 0),
        ("dense-l", "dense", 3.12, 230.0, 25.9, 25.9, 0),
        ("dense-xl", "dense", 2.99, 470.0, 52.0, 52.0, 0),
        ("altup-s-k2", "altup", 3.44, 66.0, 5.9, 5.9, 0),
        ("altup-m-k2", "altup", 3.20, 118.0, 12.8, 12.8, 0),
        ("altup-m-k4", "altup", 3.17, 131.0, 15.9, 15.9, 0),
        ("moe-m-e8", "moe", 3.14, 190.0, 34.0, 14.5, 8),
        ("altup-moe-m-e8", "altup + moe", 3.06, 205.0, 36.2, 16.0, 8),
        ("altup-moe-l-e16", "altup + moe", 2.93, 420.0, 110.0, 36.0, 16),
    ]
    rows = []
    for name, family, loss, ms, total, active, experts in models:
        for number in range(3):
            at, step = loss + draw.gauss(0, 0.012), ms * (1 + draw.gauss(0, 0.015))
            decode = None if family == "moe" else 0.05 * step
            made = row(
                name,
                number,
                at,
                step,
                family=family,
                parameters=int(1e6 * total),
                active=int(1e6 * active),
                prefill=0.008 * step,
                decode=decode,
                width={"-s": 128, "-l": 384, "-x": 512}.get(name[len(family.replace(" + ", "-")) :][:2]),
            )
            made = replace(made, curve=_curve(at, draw))
            if experts:
                load = _load(6, experts, draw)
                highest = max(experts * max(layer) for layer in load if layer)
                made = replace(made, experts=Experts(0.012, highest, load))
                assert made.latency is not None
                made = replace(made, latency=replace(made.latency, all_to_all_ms=0.1 * ms, exposed_ms=0.03 * ms))
            rows.append(made)
    rows.append(failed("moe-l-e64", 0, reason="out of memory: 71.2 GiB wanted, 62.0 GiB there"))
    rows.append(failed("altup-moe-xl", 1, "altup + moe", "step 212: the loss is not finite"))
    return rows


def write_study(directory: Path, rows: list[StudyRow]) -> Path:
    """rows.jsonl and study.yaml; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "rows.jsonl").write_text("".join(row.line() + "\n" for row in rows), encoding="utf-8")
    (directory / "study.yaml").write_text("name: width\nseeds: [0, 1, 2]\n", encoding="utf-8")
    return directory
