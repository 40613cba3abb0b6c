"""Records of a study's rows.jsonl: one JSON line per row, written when the row is finished, read by the report.

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
    """Machine and process layout of a row."""

    processor: str
    cores: int
    threads: int
    """CPU threads of each rank."""
    ranks: int
    device: str
    torch: str
    system: str


@dataclass(frozen=True)
class Quality:
    """Losses after the last step, on held-out data."""

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
    """Speed and memory of the trained model; of the worst rank if there are several."""

    train_step: Spread
    train_tokens_per_second: float
    peak_memory_gib: float
    prefill: Spread | None = None
    """ms per prompt token, through the reference model."""
    decode: Spread | None = None
    """ms per generated token, through the KV cache."""
    all_to_all_ms: float | None = None
    """Time of the experts' exchanges in a step."""
    exposed_ms: float | None = None
    """The part of it during which the step waited."""


@dataclass(frozen=True)
class Experts:
    """Routing on held-out data."""

    dropped_share: float
    max_mean_load: float
    """Load of the fullest expert over the mean load, in the worst layer."""
    load: list[list[float]]
    """Share of the routes that each expert received, by layer; an empty list for a layer without experts."""


@dataclass(frozen=True)
class CurvePoint:
    """Losses at one step. `tokens`: seen so far. `valid_loss`: None at steps without a validation."""

    step: int
    tokens: int
    loss: float
    valid_loss: float | None = None


@dataclass(frozen=True)
class StudyRow:
    """One line of rows.jsonl."""

    study: str
    name: str
    """Name of the configuration, the same for all seeds, as in "altup-k2"."""
    family: str
    """Rows of a family are one curve in the report: "dense"."""
    seed: int
    config_hash: str
    """SHA-256 of the resolved configuration, the seed included, without where it runs."""
    overrides: dict[str, Any]
    """Dotted keys of the grid that differ from the study's base."""
    commit: str
    """Commit of the code, with a + if the tree had changes; "" outside a checkout."""
    hardware: Hardware
    status: Status
    reason: str | None = None
    """Why the row failed, in one line."""
    parameters: int | None = None
    active_parameters: int | None = None
    """Parameters that one token uses."""
    table_parameters: int | None = None
    """Parameters of the embedding and of an output layer of its own."""
    flops_per_token: float | None = None
    steps: int | None = None
    tokens: int | None = None
    train_seconds: float | None = None
    quality: Quality | None = None
    latency: Latency | None = None
    experts: Experts | None = None
    role: Literal["trained", "tuning"] = "trained"
    """tuning: it chose the value of a tuned key for others, and was not measured; the report leaves it out."""
    curve: list[CurvePoint] = field(default_factory=list)

    def line(self) -> str:
        """The row as one line of JSON."""
        return json.dumps(asdict(self), allow_nan=False)


_NESTED = {"hardware": Hardware, "quality": Quality, "latency": Latency, "experts": Experts}
_SPREADS = ("train_step", "prefill", "decode")


def row_from(content: dict[str, Any]) -> StudyRow:
    """Read a row from JSON. Raises ValueError, TypeError or KeyError if a key is unknown or missing."""
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
    """Read all rows of a file. Raises UserError if it cannot be read, or names the number of a line that is no row."""
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
