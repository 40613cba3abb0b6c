"""Read a study's file: its configurations, seeds and budget, and how the trained models are measured.

    name: widths                       # else the file's name
    base: {model: {...}, optim: ...}   # sections of a run, or a run's file: a path from here, or a shipped one's name
    seeds: [1, 2, 3]
    budget: {tokens: 2_000_000}        # or {seconds: 60}
    rows:
      - {name: dense, family: dense, set: {altup.width: 1}}
    grid:                              # one, or a list of them
      name: k{altup.width}-{altup.select}
      family: altup
      set: {altup.width: [2, 4], altup.select: [same, alternating]}

Instead of budget, rows and grid there may be a `ladder` (`study.ladder.spec`).

A row or grid may name a row above it as its `after`: it is trained once that row of the same seed is, from its weights.
If that row fails, so does this one. `ranks`, `launcher` and `rate` stand at the top, and differ in a row or grid where
its `set` has them. `cluster` is launcher slurm's (`study.slurm.cluster`). Everything is read and
checked before anything starts.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.checks import check_config
from altup_moe.config.keys import unknown_key
from altup_moe.config.load import HINTS, coerce, from_dict, read_yaml
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Range
from altup_moe.config.shipped import find_file
from altup_moe.config.start_advice import replace_start
from altup_moe.study.grid import combinations, default_name, filled, safe
from altup_moe.study.ladder.read import read_ladder
from altup_moe.study.ladder.rows import LadderRow, ladder_rows
from altup_moe.study.read_record import mapping, read_seeds, record
from altup_moe.study.same_run import reasons
from altup_moe.study.slurm.cluster import Cluster, read_cluster
from altup_moe.study.spec import Branch, Budget, Launcher, Losses, MeasureSpec, RowSpec, Study, steps_for

_RATE = re.compile(r"[0-9]+(\.[0-9]+)?([kmg])bit", re.IGNORECASE)
_DECIDED = {"train.seed": "seeds", "train.stop_after": "budget", "log.run_dir": "the study's directory"}
TIMELESS = ("constant", "inverse_sqrt")
"""Schedules whose rate at a step does not depend on the number of steps."""


@dataclass(frozen=True)
class _File:
    """Top-level keys of the file."""

    base: Any
    seeds: Any
    budget: Any = None
    name: str | None = None
    ladder: Any = None
    rows: Any = None
    grid: Any = None
    measure: Any = None
    cluster: Any = None
    ranks: int = 1
    launcher: Launcher = "torchrun"
    rate: str | None = None
    threads: int = 1


@dataclass(frozen=True)
class _Top(_File):
    """The file's keys, and what the command says instead of them."""

    override: Launcher | None = None
    """Launcher of all rows."""


_RUN_HINTS = {key: typing.get_type_hints(_Top)[key] for key in ("ranks", "launcher", "rate")}


_EXAMPLES = {"base": "base: quickstart", "seeds": "seeds: [1, 2, 3]", "budget": "budget: {tokens: 2_000_000}"}
"""Lines of a study's file for keys that must be there."""


@dataclass(frozen=True)
class _Named:
    """One configuration of the file; each seed makes a row of it."""

    name: str
    family: str
    set: dict[str, Any]
    after: Any = None


def load_study(path: str | Path, launcher: Launcher | None = None) -> Study:
    """Read a study's file, or the shipped one of that name, and check its rows.

    Args:
        launcher: what all rows are started by, whatever the file says; None is the file's.
    Raises:
        ConfigError: a key or value that does not fit (rows' keys begin with `rows.NAME`); two rows that are the same.
        UserError: a file that cannot be read.
    """
    file = find_file(path, "study")
    content = read_yaml(file)
    _check_no_run(file, content)
    top = _Top(**vars(record(_File, content, "", _EXAMPLES)), override=launcher)
    base = read_yaml(_base(file, top.base)) if isinstance(top.base, str) else mapping("base", top.base)
    measure, cluster = _measure(top.measure), read_cluster(top.cluster)
    COUNT.check("threads", top.threads)
    seeds = read_seeds("seeds", top.seeds)
    if top.ladder is not None:
        return _ladder(top, base, seeds, measure, cluster, safe(top.name or file.stem))
    budget = _budget(top.budget)
    named = [*_rows(top.rows), *_grids(top.grid)]
    if not named:
        raise ConfigError("rows", top.rows, "one row or more, here or in grid, would fit")
    made: list[RowSpec] = []
    for seed in seeds:
        for each in named:
            made.append(_row(top, base, budget, each, seed, _before(each, [row for row in made if row.seed == seed])))
    _check_different(made, base)
    _check_fits(measure, made)
    _check_places(cluster, made)
    return Study(safe(top.name or file.stem), made, measure, cluster=cluster)


def _ladder(
    top: _Top, base: Mapping[str, Any], seeds: list[int], measure: MeasureSpec, cluster: Cluster, name: str
) -> Study:
    """The study of a ladder, with the rows that are known before anything is trained."""
    for key in ("budget", "rows", "grid"):
        if (value := getattr(top, key)) is not None:
            raise ConfigError(key, value, "a ladder decides its rows and their tokens; without it it would fit")
    ladder = read_ladder(top.ladder)

    def resolve(keys: Mapping[str, Any]) -> RunConfig:
        return from_dict(_sections(base, keys))

    def spec(row: LadderRow, branch: Branch | None = None) -> RowSpec:
        named = _Named(row.name, row.family, row.set)
        made = _row(top, base, Budget(tokens=row.tokens), named, row.seed, None)
        return replace(made, role=row.role, branch=branch)

    def grown(losses: Losses) -> Study:
        made: dict[tuple[str, int], RowSpec] = {}
        for row in ladder_rows(ladder, seeds, resolve, lambda row: losses(spec(row))):
            off = row.branches_off
            branch = None if off is None else Branch(made[off[0], row.seed], off[1])
            made[row.name, row.seed] = spec(row, branch)
        rows = list(made.values())
        _check_different(rows, base)
        _check_fits(measure, rows)
        _check_places(cluster, rows)
        return Study(name, rows, measure, grown, len(ladder.families) * len(ladder.sizes), cluster)

    return grown(lambda row: None)


def _check_no_run(file: Path, content: object) -> None:
    """Raise UserError for the file of a run."""
    sections = {key.partition(".")[0] for key in HINTS}
    if isinstance(content, dict) and content and content.keys() <= sections:
        instead = f"a study names it as its base (base: {file}); altup-moe train {file} trains it"
        raise UserError(f"{file}: is the configuration of a run, no study; {instead}")


def _base(study: Path, base: str) -> Path:
    """The run's file that a study's file names."""
    beside = study.parent / base
    return beside if beside.is_file() or "/" in base else find_file(base, "configuration")


def _budget(content: object) -> Budget:
    if content is None:
        raise ConfigError("budget", None, f"is missing, as in {_EXAMPLES['budget']}")
    budget: Budget = record(Budget, content, "budget.")
    if (budget.tokens is None) == (budget.seconds is None):
        raise ConfigError("budget", content, "has tokens or seconds, one of the two")
    if budget.tokens is not None:
        COUNT.check("budget.tokens", budget.tokens)
    if budget.seconds is not None:
        POSITIVE.check("budget.seconds", budget.seconds)
    return budget


def _measure(content: object) -> MeasureSpec:
    measure: MeasureSpec = record(MeasureSpec, content or {}, "measure.")
    for key, value in vars(measure).items():
        if value is not None:
            (NOT_NEGATIVE if key in ("warmup", "recorded") else COUNT).check(f"measure.{key}", value)
    return measure


def _rows(content: object) -> Iterator[_Named]:
    if content is not None and not isinstance(content, list):
        raise ConfigError("rows", content, "a list of rows, each with a name and a set, would fit")
    for number, row in enumerate(content or ()):
        values = mapping(f"rows.{number}", row)
        for key in values:
            if key not in _NAMED:
                raise unknown_key(f"rows.{number}.{key}", values[key], [f"rows.{number}.{k}" for k in _NAMED])
        name = values.get("name")
        if not isinstance(name, str) or safe(name) != name or not name:
            raise ConfigError(f"rows.{number}.name", name, "letters, digits, dots, dashes and underscores would fit")
        overrides = mapping(f"rows.{name}.set", values.get("set") or {})
        yield _Named(name, str(values.get("family", name)), overrides, values.get("after"))


def _grids(content: object) -> Iterator[_Named]:
    for grid in content if isinstance(content, list) else [content] if content is not None else []:
        values = mapping("grid", grid)
        for key in values:
            if key not in _NAMED:
                raise unknown_key(f"grid.{key}", values[key], [f"grid.{k}" for k in _NAMED])
        lists = mapping("grid.set", values.get("set"))
        for key, listed in lists.items():
            if key not in HINTS and key not in _RUN_HINTS:
                known = unknown_key(str(key), listed, [*HINTS, *_RUN_HINTS])
                raise ConfigError(f"grid.set.{key}", listed, known.fits)
            if not isinstance(listed, list) or not listed:
                raise ConfigError(f"grid.set.{key}", listed, "a list of values would fit")
        for combination in combinations(lists):
            template = values.get("name")
            name = safe(filled("grid.name", str(template), combination)) if template else default_name(combination)
            family = filled("grid.family", str(values.get("family", name)), combination)
            yield _Named(name, family, combination, values.get("after"))


_NAMED = ("name", "family", "set", "after")


def _before(named: _Named, made: list[RowSpec]) -> RowSpec | None:
    """The row whose weights a row starts from, among those of its seed that stand above it."""
    if named.after is None:
        return None
    above = {row.name: row for row in made}
    if named.after not in above:
        fits = f"a row above it would fit: {', '.join(above) or 'there is none'}"
        raise ConfigError(f"rows.{named.name}.after", named.after, fits)
    return above[named.after]


def _row(
    top: _Top, base: Mapping[str, Any], budget: Budget, named: _Named, seed: int, after: RowSpec | None
) -> RowSpec:
    try:
        return _checked(top, base, budget, named, seed, after)
    except ConfigError as error:
        fits = replace_start(error.fits, lambda ranks: f"ranks: {ranks} would fit, at the top or in a row's set")
        raise ConfigError(f"rows.{named.name}.{error.key}", error.value, fits) from None


def _checked(
    top: _Top, base: Mapping[str, Any], budget: Budget, named: _Named, seed: int, after: RowSpec | None
) -> RowSpec:
    run = {key: getattr(top, key) for key in _RUN_HINTS}
    sections = _sections(base, named.set)
    for key, value in named.set.items():
        if key in run:
            run[key] = coerce(key, _RUN_HINTS[key], value)
        elif key not in HINTS:
            raise unknown_key(str(key), value, [*HINTS, *run])
        elif key in _DECIDED:
            raise ConfigError(key, value, f"{_DECIDED[key]} decides it")
    run |= {} if top.override is None else {"launcher": top.override}
    if budget.tokens is not None and "train.steps" in named.set:
        raise ConfigError("train.steps", named.set["train.steps"], "budget.tokens decides it")
    config = _budgeted(_quiet(from_dict(sections), sections), sections, budget, seed)
    COUNT.check("ranks", run["ranks"])
    if run["launcher"] == "netlab" and run["ranks"] < 2:
        raise ConfigError("ranks", run["ranks"], "launcher netlab joins ranks by a network; 2 or more would fit")
    if run["rate"] is not None and (run["launcher"] != "netlab" or not _RATE.fullmatch(run["rate"])):
        raise ConfigError("rate", run["rate"], "is launcher netlab's, as in 200mbit")
    check_config(config, run["ranks"])
    if after is not None and (path := config.checkpoint.initial_load_path) is not None:
        raise ConfigError("checkpoint.initial_load_path", path, f"after: {after.name} decides it")
    overrides = {str(key): value for key, value in named.set.items()}
    return RowSpec(named.name, named.family, seed, overrides, config, budget, threads=top.threads, after=after, **run)


def _sections(base: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sections of a run: the base's with dotted keys of a row."""
    sections: dict[str, dict[str, Any]] = {name: dict(values or {}) for name, values in base.items()}
    for key, value in keys.items():
        section, dot, leaf = str(key).partition(".")
        if dot:
            sections.setdefault(section, {})[leaf] = value
    return sections


def _quiet(config: RunConfig, given: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """Change two defaults: no TensorBoard files, and one checkpoint is kept."""
    log = replace(config.log, tensorboard=given.get("log", {}).get("tensorboard", False))
    checkpoint = replace(config.checkpoint, keep=given.get("checkpoint", {}).get("keep", 1))
    return replace(config, log=log, checkpoint=checkpoint)


def _budgeted(config: RunConfig, given: Mapping[str, Mapping[str, Any]], budget: Budget, seed: int) -> RunConfig:
    """Set the seed, the steps that the budget allows, and ten checkpoints during the run."""
    train = replace(config.train, seed=seed, stop_after=None)
    if budget.tokens is not None:
        train = replace(train, steps=steps_for(budget.tokens, config))
    elif config.optim.schedule not in TIMELESS:
        fits = f"budget.seconds leaves the number of steps open; {' or '.join(TIMELESS)} would fit"
        raise ConfigError("optim.schedule", config.optim.schedule, fits)
    checkpoint = config.checkpoint
    if budget.tokens is not None and "save_interval" not in given.get("checkpoint", {}):
        checkpoint = replace(checkpoint, save_interval=max(1, train.steps // 10))
    return replace(config, train=train, checkpoint=checkpoint)


def _check_different(rows: list[RowSpec], base: Mapping[str, Any]) -> None:
    hashes: dict[str, RowSpec] = {}
    names: set[tuple[str, int]] = set()
    for row in rows:
        if (row.name, row.seed) in names:
            raise ConfigError("rows", row.name, "stands twice; names must differ")
        names.add((row.name, row.seed))
        twin = hashes.setdefault(row.config_hash, row)
        if twin is not row:
            why = reasons(row, twin, base)
            fits = f"is the same run as rows.{twin.name}{': ' if why else ''}{why}; keep one"
            raise ConfigError(f"rows.{row.name}", row.overrides, fits)


def _check_fits(measure: MeasureSpec, rows: list[RowSpec]) -> None:
    if measure.prefill_tokens is not None:
        shortest = min(row.config.model.seq_length for row in rows)
        Range(1, shortest - 1).check("measure.prefill_tokens", measure.prefill_tokens)


def _check_places(cluster: Cluster, rows: list[RowSpec]) -> None:
    """Check that SLURM starts all rows or none, and that their ranks fill nodes."""
    on_slurm = [row for row in rows if row.launcher == "slurm"]
    for row in rows:
        if on_slurm and row.launcher != "slurm":
            fits = f"rows.{on_slurm[0].name} has launcher slurm, which is the whole study's: it would fit at the top"
            raise ConfigError(f"rows.{row.name}.launcher", row.launcher, fits)
    for row in on_slurm:
        cluster.place(row.ranks)
