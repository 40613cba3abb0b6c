"""Tables as CSV: rows.csv has a line for every row of the study, models.csv one for every model."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from altup_moe.study.records import StudyRow
from altup_moe.study.report.comparisons import Comparison, own_loss
from altup_moe.study.report.models import AXES, LATENCIES, LOSS_UNITS, Model, Stat, latency
from altup_moe.study.report.summary import Summary


def tables(found: Summary) -> dict[str, str]:
    """Contents of rows.csv and models.csv by file name. Times in ms, losses in nats; missing figures are empty."""
    return {
        "rows.csv": csv_text(_row(row) for row in found.rows),
        "models.csv": csv_text(_model(found, model) for model in found.models),
    }


def csv_text(lines: Iterable[Mapping[str, Any]]) -> str:
    """Lines as CSV; all have the same keys."""
    listed = list(lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(listed[0]) if listed else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(listed)
    return text.getvalue()


def _row(row: StudyRow) -> dict[str, Any]:
    quality, measured, experts = row.quality, row.latency, row.experts
    return {
        "study": row.study,
        "name": row.name,
        "family": row.family,
        "seed": row.seed,
        "status": row.status,
        "reason": row.reason,
        "parameters": row.parameters,
        "active_parameters": row.active_parameters,
        "flops_per_token": row.flops_per_token,
        "steps": row.steps,
        "tokens": row.tokens,
        "train_seconds": row.train_seconds,
        "valid_loss": quality and quality.valid_loss,
        "valid_bits_per_byte": quality and quality.valid_bits_per_byte,
        "train_loss": quality and quality.train_loss,
        **{f"{kind}_ms": latency(row, kind) for kind in LATENCIES},
        **{f"{kind}_p95_ms": getattr(getattr(measured, kind, None), "p95", None) for kind in LATENCIES},
        "train_tokens_per_second": measured and measured.train_tokens_per_second,
        "peak_memory_gib": measured and measured.peak_memory_gib,
        "all_to_all_ms": measured and measured.all_to_all_ms,
        "exposed_ms": measured and measured.exposed_ms,
        "dropped_share": experts and experts.dropped_share,
        "max_mean_load": experts and experts.max_mean_load,
        **vars(row.hardware),
        "commit": row.commit,
        "config_hash": row.config_hash,
        "overrides": json.dumps(row.overrides),
    }


def _model(found: Summary, model: Model) -> dict[str, Any]:
    line: dict[str, Any] = {"name": model.name, "family": model.family, "seeds": len(model.rows)}
    stats: dict[str, Stat | None] = {
        **{m: model.quality(m) for m in LOSS_UNITS},
        **{axis: model.along(axis) for axis in AXES},
    }
    for key, one in stats.items():
        name = f"{key}_ms" if key in LATENCIES else {"loss": "valid_loss", "bits": "valid_bits_per_byte"}.get(key, key)
        line |= {f"{name}_{part}": one and getattr(one, part) for part in ("mean", "std", "least", "most")}
        if key in LOSS_UNITS:
            own = own_loss(model, key)
            line |= {f"{name}_low": own and own.low, f"{name}_high": own and own.high}
    for kind in LATENCIES:
        one_speed = found.speeds.get(model.name, {}).get(kind)
        interval = one_speed and one_speed.interval
        line |= {
            f"{kind}_speed": one_speed and one_speed.ratio,
            f"{kind}_speed_reached": one_speed and one_speed.reached,
            f"{kind}_speed_low": interval and _end(interval.low),
            f"{kind}_speed_high": interval and _end(interval.high),
            f"{kind}_speed_p": one_speed and one_speed.adjusted,
        }
        line |= _comparison(f"{kind}_ratio", found.ratios.get(model.name, {}).get(kind))
    return line | _comparison("loss_difference", found.differences.get(model.name))


def _comparison(key: str, one: Comparison | None) -> dict[str, Any]:
    interval = one and one.interval
    return {
        key: one and one.value,
        f"{key}_from": one and one.other,
        f"{key}_low": interval and interval.low,
        f"{key}_high": interval and interval.high,
        f"{key}_p": one and one.adjusted,
        f"{key}_paired": one and one.paired,
        f"{key}_seeds_needed": one and one.seeds_needed,
    }


def _end(value: float) -> float | str:
    """An end of an interval; `better` or `worse` if it lies off the curve."""
    return value if math.isfinite(value) else "better" if value > 0 else "worse"
