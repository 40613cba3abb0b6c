"""Data of pictures and page: loss curves over seeds, loads of experts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from altup_moe.report.curves import DASHES, binned
from altup_moe.study.records import CurvePoint, StudyRow
from altup_moe.study.report.models import Model

Band = tuple[int, float, float, float]
"""(tokens seen, mean loss over seeds, least, most)."""


@dataclass(frozen=True)
class Curve:
    """Losses of a model during training. `dash`: its index in its family."""

    model: Model
    dash: int
    train: list[Band]
    valid: list[Band]


@dataclass(frozen=True)
class LayerLoad:
    """Shares of a layer's routes by expert; layers are counted from 0."""

    layer: int
    load: list[float]


def curves(families: dict[str, list[Model]]) -> list[Curve]:
    """Loss curves of all models that have points."""
    found = []
    for members in families.values():
        for index, model in enumerate(members):
            seeds = [row.curve for row in model.rows if row.curve]
            if seeds:
                valid = [[(p.tokens, p.valid_loss) for p in one if p.valid_loss is not None] for one in seeds]
                found.append(Curve(model, index % DASHES, _bands([_binned(one) for one in seeds]), _bands(valid)))
    return found


def _binned(points: Sequence[CurvePoint]) -> list[tuple[int, float]]:
    """Average a curve in at most BINS bins: (tokens at the end of a bin, mean training loss)."""
    return [(part[-1].tokens, statistics.fmean(p.loss for p in part)) for part in binned(points)]


def _bands(seeds: Sequence[Sequence[tuple[int, float]]]) -> list[Band]:
    """Mean and extremes over seeds, at the points that all seeds have."""
    by_tokens: dict[int, list[float]] = {}
    for points in seeds:
        for tokens, loss in points:
            by_tokens.setdefault(tokens, []).append(loss)
    return [
        (tokens, statistics.fmean(losses), min(losses), max(losses))
        for tokens, losses in sorted(by_tokens.items())
        if len(losses) == len(seeds)
    ]


def loads(models: Sequence[Model]) -> list[tuple[StudyRow, list[LayerLoad]]]:
    """Loads of the rows with experts. Seeds are not averaged: their experts are unrelated."""
    rows = [row for model in models for row in model.rows if row.experts]
    found = [
        (row, [LayerLoad(i, load) for i, load in enumerate(row.experts.load) if load]) for row in rows if row.experts
    ]
    return [(row, layers) for row, layers in found if layers]
