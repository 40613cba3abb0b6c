"""The rows of a ladder, as far as they are known: those that tune first, and once they are trained the others.

A pure function of the ladder and of the losses of rows so far, so that a study that was killed goes on with the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from altup_moe.config import ConfigError, RunConfig
from altup_moe.parallel.counts import count_parameters
from altup_moe.study.ladder.spec import Family, Ladder
from altup_moe.study.ladder.tuning import best_value, next_value
from altup_moe.study.spec import Role, steps_for

Resolve = Callable[[Mapping[str, Any]], RunConfig]
"""From the keys of a row to its configuration."""


@dataclass(frozen=True)
class LadderRow:
    """One row. ``set``: its dotted keys.

    ``branches_off``: name of the row of its seed whose checkpoint it goes on from, and the step of that checkpoint.
    """

    name: str
    family: str
    seed: int
    tokens: int
    set: dict[str, Any] = field(default_factory=dict)
    role: Role = "trained"
    branches_off: tuple[str, int] | None = None


Loss = Callable[[LadderRow], float | None]
"""Held-out loss of a row: None while it is not trained, inf if it has failed."""


def ladder_rows(ladder: Ladder, seeds: Sequence[int], resolve: Resolve, loss: Loss) -> list[LadderRow]:
    """All rows that are known: in order of training, and a row stands after the one that it branches off.

    Args:
        seeds: of the sizes that have none of their own (`Ladder.seeds`).
    Raises:
        ConfigError: a size, or a number of tokens that leaves no room for the warm-up.
    """
    tuning: list[LadderRow] = []
    models: list[tuple[Family, int, dict[str, Any]]] = []
    tokens = {size: _tokens(ladder, size, resolve) for size in ladder.sizes}
    own_seeds = {size: ladder.seeds.get(size, tuple(seeds)) for size in ladder.sizes}
    for size in ladder.sizes:
        for family in ladder.families:
            keys = {**ladder.rule.keys(size), **family.set}
            if ladder.tune is None:
                models.append((family, size, keys))
                continue
            tries, tuned = _tuned(ladder, family, size, tokens[size][0], own_seeds[size][0], keys, resolve, loss)
            tuning += tries
            if tuned is not None:
                models.append((family, size, {**keys, **_with_rate(resolve, keys, ladder.tune.key, tuned)}))
    rows = [
        row
        for turn in range(max(map(len, own_seeds.values())))
        for family, size, keys in models
        for seed in own_seeds[size][turn : turn + 1]
        for row in _of_model(ladder, family, size, seed, tokens[size], keys, resolve)
    ]
    return [*tuning, *rows]


def _tokens(ladder: Ladder, size: int, resolve: Resolve) -> list[int]:
    """Numbers of tokens at a size: the ladder's, or multiples of the first family's parameters without tables."""
    if ladder.tokens:
        return list(ladder.tokens)
    counts = count_parameters(resolve({**ladder.rule.keys(size), **ladder.families[0].set}))
    return [round(each * (counts.active - counts.tables)) for each in ladder.tokens_per_parameter]


def _tuned(
    ladder: Ladder,
    family: Family,
    size: int,
    tokens: int,
    seed: int,
    keys: Mapping[str, Any],
    resolve: Resolve,
    loss: Loss,
) -> tuple[list[LadderRow], float | None]:
    """The tries of a model so far, and the tuned value once it is known."""
    assert ladder.tune is not None
    key, grid = ladder.tune.key, ladder.tune.values

    def row(value: float) -> LadderRow:
        own = {**keys, **_with_rate(resolve, keys, key, value)}
        name = f"{family.name}-d{size}-{key.rpartition('.')[2]}-{value:g}"
        return _scheduled(LadderRow(name, family.name, seed, tokens, own, "tuning"), ladder, resolve)

    rows = {value: row(value) for value in grid}
    while True:
        losses = {value: loss(each) for value, each in rows.items()}
        tried = {value: found for value, found in losses.items() if found is not None}
        if len(tried) < len(rows):
            return list(rows.values()), None
        further = next_value(tried, len(grid))
        if further is None or further in rows:
            break
        rows[further] = row(further)
    best = best_value(tried)
    return list(rows.values()), None if best is None else best.value


def _with_rate(resolve: Resolve, keys: Mapping[str, Any], key: str, value: float) -> dict[str, Any]:
    """A value of the tuned key; a learning rate takes the rate at the end of the decay with it."""
    if key != "optim.learning_rate":
        return {key: value}
    optim = resolve(keys).optim
    share = optim.min_learning_rate / optim.learning_rate
    return {key: value, "optim.min_learning_rate": float(f"{share * value:.6g}")}


def _of_model(
    ladder: Ladder,
    family: Family,
    size: int,
    seed: int,
    tokens: Sequence[int],
    keys: Mapping[str, Any],
    resolve: Resolve,
) -> Iterator[LadderRow]:
    """The run of the most tokens, then those that branch off it."""
    multiples = [f"{each:g}" for each in ladder.tokens_per_parameter]
    names = [f"{family.name}-d{size}-t{each}" for each in multiples or map(str, ladder.tokens)]
    made = [
        _scheduled(LadderRow(name, family.name, seed, each, dict(keys)), ladder, resolve)
        for name, each in zip(names, tokens, strict=True)
    ]
    *shorter, longest = made
    starts = [_steps(row, resolve) - row.set["optim.decay_steps"] for row in shorter]
    yield replace(longest, set={**longest.set, "checkpoint.save_at": starts}) if starts else longest
    for row, start in zip(shorter, starts, strict=True):
        yield replace(row, branches_off=(longest.name, start))


def _steps(row: LadderRow, resolve: Resolve) -> int:
    return steps_for(row.tokens, resolve(row.set))


def _scheduled(row: LadderRow, ladder: Ladder, resolve: Resolve) -> LadderRow:
    """With the warm-up, constant rate and decay of its number of steps."""
    steps, warmup = _steps(row, resolve), resolve(row.set).optim.warmup_steps
    decay = max(1, round(ladder.decay * steps))
    if warmup + decay > steps:
        fits = f"{row.name} has {steps} steps, {decay} of them decay; optim.warmup_steps ({warmup}) leave no room; "
        key = "tokens" if ladder.tokens else "tokens_per_parameter"
        raise ConfigError(f"ladder.{key}", list(getattr(ladder, key)), fits + "more would fit")
    return replace(row, set={**row.set, "optim.schedule": "wsd", "optim.decay_steps": decay})
