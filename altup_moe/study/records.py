"""What a study keeps of a row: one JSON line, written when the row is finished, read by the report.

A row is one configuration of the grid with one seed. A row that could not be trained or measured is kept with its
reason. Losses are in nats a token, times in milliseconds; None is what a row does not have (experts, ranks).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from altup_moe.config import UserError

Status = Literal["done", "failed"]


@dataclass(frozen=True)
class Hardware:
    """What a row ran on."""

    processor: str
    cores: int
    threads: int
    """Of each rank."""
    ranks: int
    device: str
    torch: str
    system: str


@dataclass(frozen=True)
class Quality:
    """After the last step, on the held-out part."""

    valid_loss: float
    valid_bits_per_byte: float
    train_loss: float
    """Mean over the last tenth of the steps."""


@dataclass(frozen=True)
class Spread:
    """A measured time: median, 95th percentile and extremes over `count` turns, ms."""

    median: float
    p95: float
    least: float
    most: float
    count: int


@dataclass(frozen=True)
class Latency:
    """Of the trained model; the worst rank's where there are several."""

    train_step: Spread
    train_tokens_per_second: float
    peak_memory_gib: float
    prefill: Spread | None = None
    """ms a token of a prompt, through the reference model."""
    decode: Spread | None = None
    """ms a generated token, through its KV cache."""
    all_to_all_ms: float | None = None
    """Experts' exchanges of a step."""
    exposed_ms: float | None = None
    """The part of them that was waited for."""


@dataclass(frozen=True)
class Experts:
    """What the routers did on the held-out part."""

    dropped_share: float
    max_mean_load: float
    """The fullest expert's load over the mean, of the worst layer."""
    load: list[list[float]]
    """Share of a layer's routes that each expert got, layer by layer; layers without experts have an empty list."""


@dataclass(frozen=True)
class CurvePoint:
    """A loss on the way. `tokens`: seen so far. `valid_loss` on steps with a validation."""

    step: int
    tokens: int
    loss: float
    valid_loss: float | None = None


@dataclass(frozen=True)
class StudyRow:
    """One line of rows.jsonl."""

    study: str
    name: str
    """Of the configuration, the same for all seeds: "altup-k2"."""
    family: str
    """Rows of a family are one curve in the report: "dense"."""
    seed: int
    config_hash: str
    """SHA-256 of the resolved configuration, the seed included, without where it runs."""
    overrides: dict[str, Any]
    """Dotted keys of the grid that differ from the study's base."""
    commit: str
    """Of the code, with a + where the tree had changes; "" outside a checkout."""
    hardware: Hardware
    status: Status
    reason: str | None = None
    """Why it failed, one line."""
    parameters: int | None = None
    active_parameters: int | None = None
    """Those that one token meets."""
    flops_per_token: float | None = None
    steps: int | None = None
    tokens: int | None = None
    train_seconds: float | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    experts: Experts | None = None
    curve: list[CurvePoint] = field(default_factory=list)

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


_NESTED = {"hardware": Hardware, "quality": Quality, "latency": Latency, "experts": Experts}
_SPREADS = ("train_step", "prefill", "decode")


def row_from(content: dict[str, Any]) -> StudyRow:
    """A row of a line's JSON. Raises ValueError, TypeError or KeyError: a key too many or one missing."""
    values = dict(content)
    for key, record in _NESTED.items():
        if values.get(key) is not None:
            inside = dict(values[key])
            if record is Latency:
                inside |= {name: Spread(**inside[name]) for name in _SPREADS if inside.get(name) is not None}
            values[key] = record(**inside)
    values["curve"] = [CurvePoint(**point) for point in values.get("curve", [])]
    unknown = set(values) - {f.name for f in fields(StudyRow)}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0]}")
    return StudyRow(**values)


def read_rows(path: Path) -> list[StudyRow]:
    """All rows of a file. Raises UserError: it cannot be read, or a line is no row (with its number)."""
    try:
        return list(_rows(path, path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def _rows(path: Path, lines: Iterable[str]) -> Iterator[StudyRow]:
    for number, line in enumerate(lines, 1):
        try:
            yield row_from(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: line {number} is no row of a study: {error}") from None
