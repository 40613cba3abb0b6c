"""Compute everything that the report says; text, page, pictures and tables only lay it out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from altup_moe.study.records import Hardware, StudyRow
from altup_moe.study.report.models import LATENCIES, LatencyKind, Model, last_lines, split
from altup_moe.study.report.statistics import Bootstrap, LossDifference, Speed, loss_difference, nearest_size, speed


@dataclass(frozen=True)
class Summary:
    """All figures of a report. `speeds` and `differences`: of models outside the reference family, by name."""

    studies: tuple[str, ...]
    reference: str
    rows: tuple[StudyRow, ...]
    models: tuple[Model, ...]
    failed: tuple[StudyRow, ...]
    speeds: dict[str, dict[LatencyKind, Speed | None]]
    differences: dict[str, LossDifference]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The study's name."""
        return ", ".join(self.studies)

    @property
    def kinds(self) -> list[LatencyKind]:
        """The latencies that some model has."""
        return [kind for kind in LATENCIES if any(model.along(kind) for model in self.models)]


def summarise(lines: Sequence[StudyRow], reference: str, bootstrap: Bootstrap) -> Summary:
    """Compute all figures from the rows of a file, in the file's order."""
    rows = last_lines(lines)
    models, failed = split(rows)
    dense = [model for model in models if model.family == reference]
    others = [model for model in models if model.family != reference]
    differences = {m.name: loss_difference(m, other, bootstrap) for m in others if (other := nearest_size(m, dense))}
    return Summary(
        studies=tuple(dict.fromkeys(row.study for row in rows)),
        reference=reference,
        rows=tuple(rows),
        models=tuple(models),
        failed=tuple(failed),
        speeds={m.name: {kind: speed(m, dense, kind, bootstrap) for kind in LATENCIES} for m in others},
        differences=differences,
        notes=tuple(_notes(lines, rows, models, dense, others)),
    )


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
    dense: Sequence[Model],
    others: Sequence[Model],
) -> Iterable[str]:
    """Warnings that a reader needs before comparing figures."""
    done = [row for model in models for row in model.rows]
    if len(lines) > len(rows):
        yield f"{len(lines) - len(rows)} earlier lines of rows that were tried again are left out"
    if others and len(dense) < 2:
        yield "speed at equal quality needs two models of the reference family; the study has " + str(len(dense))
    if len({row.hardware for row in done}) > 1:
        yield "not all rows ran on the same hardware, or with as many ranks: their latencies do not compare"
    if len({row.tokens for row in done}) > 1:
        yield "not all rows were trained on as many tokens"
    if len({_per_step(row) for row in done}) > 1:
        yield "not all rows have as many tokens in a step: the times of a step do not compare"
    # Each seed draws its own held-out part, which all models of the seed share.
    if not all(_measured_alike(row for row in done if row.seed == seed) for seed in {row.seed for row in done}):
        yield "the rows' tokenizers or held-out parts differ: compare bits per byte, not the losses"
    if single := [model.name for model in models if len(model.rows) == 1]:
        yield f"one seed, so no spread and no interval: {', '.join(single)}"
    mixed = [model.name for model in models if len({row.family for row in model.rows}) > 1]
    if mixed:
        yield f"rows of one name are in several families: {', '.join(mixed)}"


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
        "loss": vars(model.quality("loss")),
        "bits_per_byte": vars(model.quality("bits")),
        **{kind: _vars(model.along(kind)) for kind in LATENCIES},
        "parameters": _vars(model.along("parameters")),
        "active_parameters": _vars(model.along("active_parameters")),
        "speed_at_equal_quality": {kind: _with_interval(one) for kind, one in speeds.items()},
        "loss_difference": _with_interval(found.differences.get(model.name)),
    }


def _vars(one: object) -> dict[str, Any] | None:
    return None if one is None else dict(vars(one))


def _with_interval(one: Speed | LossDifference | None) -> dict[str, Any] | None:
    if one is None:
        return None
    values = dict(vars(one))
    if one.interval is not None:
        inside = dict(vars(one.interval))
        ends = {end: None if abs(inside[end]) == float("inf") else inside[end] for end in ("low", "high")}
        values["interval"] = inside | ends
    return values | {"no_difference": one.no_difference}
