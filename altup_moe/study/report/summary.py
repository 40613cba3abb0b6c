"""Compute everything that the report says; text, page, pictures and tables only lay it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from altup_moe.study.records import Hardware, StudyRow
from altup_moe.study.report.comparisons import (
    Comparison,
    adjusted_p,
    latency_ratio,
    loss_difference,
    nearest_size,
    own_loss,
)
from altup_moe.study.report.front import Rings, told_apart
from altup_moe.study.report.gaps import gaps
from altup_moe.study.report.models import LATENCIES, LatencyKind, Model, last_lines, split
from altup_moe.study.report.statistics import Speed, speed

Tested = TypeVar("Tested", Speed, Comparison)


@dataclass(frozen=True)
class Summary:
    """All figures of a report.

    `speeds`, `ratios` and `differences`: of models outside the reference family, by name. `rings`: the models of each
    Pareto front that are told apart from all others.
    """

    studies: tuple[str, ...]
    reference: str
    rows: tuple[StudyRow, ...]
    models: tuple[Model, ...]
    failed: tuple[StudyRow, ...]
    speeds: dict[str, dict[LatencyKind, Speed | None]]
    ratios: dict[str, dict[LatencyKind, Comparison | None]]
    differences: dict[str, Comparison]
    rings: Rings
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The study's name."""
        return ", ".join(self.studies)

    @property
    def has_speed(self) -> bool:
        """Whether some model has a speed at equal quality."""
        return any(one is not None for speeds in self.speeds.values() for one in speeds.values())

    @property
    def kinds(self) -> list[LatencyKind]:
        """The latencies that some model has."""
        return [kind for kind in LATENCIES if any(model.along(kind) for model in self.models)]


def summarise(lines: Sequence[StudyRow], reference: str) -> Summary:
    """Compute all figures from the rows of a file, in the file's order."""
    rows = last_lines(lines)
    models, failed = split(rows)
    dense = [model for model in models if model.family == reference]
    others = [model for model in models if model.family != reference]
    nearest = {m.name: (m, other) for m in others if (other := nearest_size(m, dense))}
    speeds = {kind: _adjusted({m.name: speed(m, dense, kind) for m in others}) for kind in LATENCIES}
    ratios = {
        kind: _adjusted({name: latency_ratio(m, other, kind, len(nearest)) for name, (m, other) in nearest.items()})
        for kind in LATENCIES
    }
    differences = _adjusted({name: loss_difference(m, other, len(nearest)) for name, (m, other) in nearest.items()})
    return Summary(
        studies=tuple(dict.fromkeys(row.study for row in rows)),
        reference=reference,
        rows=tuple(rows),
        models=tuple(models),
        failed=tuple(failed),
        speeds={m.name: {kind: speeds[kind][m.name] for kind in LATENCIES} for m in others},
        ratios={name: {kind: ratios[kind][name] for kind in LATENCIES} for name in nearest},
        differences={name: one for name, one in differences.items() if one is not None},
        rings=told_apart(models),
        notes=tuple(_notes(lines, rows, models, reference)),
    )


def _adjusted(found: dict[str, Tested | None]) -> dict[str, Tested | None]:
    """A column of the report with its p-values adjusted among all its models."""
    adjusted = adjusted_p([None if one is None else one.p for one in found.values()])
    return {name: one and replace(one, adjusted=p) for (name, one), p in zip(found.items(), adjusted, strict=True)}


def hardware(rows: Iterable[StudyRow]) -> list[tuple[Hardware, int]]:
    """The machines that rows ran on, with the number of rows."""
    found: dict[Hardware, int] = {}
    for row in rows:
        found[row.hardware] = found.get(row.hardware, 0) + 1
    return list(found.items())


def hardware_text(one: Hardware) -> str:
    """A machine in one line."""
    ranks = f"{one.ranks} rank{'s' * (one.ranks != 1)}, {one.threads} thread{'s' * (one.threads != 1)} each"
    return f"{one.processor}, {one.cores} cores, {one.device}; {ranks}; torch {one.torch}; {one.system}"


def _notes(
    lines: Sequence[StudyRow],
    rows: Sequence[StudyRow],
    models: Sequence[Model],
    reference: str,
) -> Iterable[str]:
    """Warnings that a reader needs before comparing figures."""
    done = [row for model in models for row in model.rows]
    if len(lines) > len(rows):
        yield f"{len(lines) - len(rows)} earlier lines of rows that were tried again are left out"
    if len({row.hardware for row in done}) > 1:
        yield "not all rows ran on the same hardware, or with as many ranks: their latencies do not compare"
    if len({row.tokens for row in done}) > 1:
        yield "not all rows were trained on as many tokens"
    if len({_per_step(row) for row in done}) > 1:
        yield "not all rows have as many tokens in a step: the times of a step do not compare"
    # Each seed draws its own held-out part, which all models of the seed share.
    if not all(_measured_alike(row for row in done if row.seed == seed) for seed in {row.seed for row in done}):
        yield "the rows' tokenizers or held-out parts differ: compare bits per byte, not the losses"
    mixed = [model.name for model in models if len({row.family for row in model.rows}) > 1]
    if mixed:
        yield f"rows of one name are in several families: {', '.join(mixed)}"
    yield from gaps(done, reference)


def _measured_alike(rows: Iterable[StudyRow]) -> bool:
    """Whether all rows were evaluated on the same tokens: then bits per byte over nats a token agree."""
    ratios = [r.quality.valid_bits_per_byte / r.quality.valid_loss for r in rows if r.quality and r.quality.valid_loss]
    return not ratios or max(ratios) <= 1.001 * min(ratios)


def _per_step(row: StudyRow) -> float | None:
    return row.tokens / row.steps if row.tokens and row.steps else None


def summary_dict(found: Summary) -> dict[str, Any]:
    """The summary as JSON; infinite ends of intervals are None."""
    return {
        "studies": list(found.studies),
        "reference": found.reference,
        "rows": len(found.rows),
        "models": [_model_dict(found, model) for model in found.models],
        "told_apart": {
            unit: {axis: [found.models[i].name for i in ringed] for axis, ringed in rings.items()}
            for unit, rings in found.rings.items()
        },
        "failed": [{"name": row.name, "seed": row.seed, "reason": row.reason} for row in found.failed],
        "hardware": [{**vars(one), "rows": count} for one, count in hardware(found.rows)],
        "notes": list(found.notes),
    }


def _model_dict(found: Summary, model: Model) -> dict[str, Any]:
    speeds = found.speeds.get(model.name, {})
    return {
        "name": model.name,
        "family": model.family,
        "seeds": [row.seed for row in model.rows],
        "loss": {**vars(model.quality("loss")), "interval": _vars(own_loss(model, "loss"))},
        "bits_per_byte": {**vars(model.quality("bits")), "interval": _vars(own_loss(model, "bits"))},
        **{kind: _vars(model.along(kind)) for kind in LATENCIES},
        "parameters": _vars(model.along("parameters")),
        "active_parameters": _vars(model.along("active_parameters")),
        "speed_at_equal_quality": {kind: _with_interval(one) for kind, one in speeds.items()},
        "latency_ratio": {kind: _with_interval(one) for kind, one in found.ratios.get(model.name, {}).items()},
        "loss_difference": _with_interval(found.differences.get(model.name)),
    }


def _vars(one: object) -> dict[str, Any] | None:
    return None if one is None else dict(vars(one))


def _with_interval(one: Speed | Comparison | None) -> dict[str, Any] | None:
    if one is None:
        return None
    interval = _vars(one.interval)
    if interval is not None:
        interval = {end: None if abs(value) == float("inf") else value for end, value in interval.items()}
    return {**vars(one), "interval": interval, "no_difference": one.no_difference}
