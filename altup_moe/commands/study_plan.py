"""`altup-moe study run STUDY --dry-run`: its rows, what they cost, and how long they take on a cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from altup_moe.config import ConfigError
from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.counts import count_parameters
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.step import plan_step
from altup_moe.report.formatting import count
from altup_moe.study.ladder.forecast import forecast
from altup_moe.study.slurm.submission import shape_of
from altup_moe.study.spec import RowSpec, Study
from altup_moe.study.study_directory import StudyDirectory

HEADS = ("row", "seed", "parameters", "active", "FLOPs a token", "tokens", "steps", "ranks", "state")
NO_CLUSTER = "no hours: --cluster NAME estimates them, of configs/clusters or a file of altup-moe plan measure FILE"


@dataclass(frozen=True)
class RowCost:
    """What a row trains: steps and tokens without those that it takes over from the row that it branches off.

    All are None for a budget of seconds, but for `hours`. hours: None where they are not estimated, `why` says why.
    """

    steps: int | None
    tokens: int | None
    flops: float | None
    hours: float | None
    why: str = ""


def row_cost(row: RowSpec, cluster: Cluster | None) -> RowCost:
    """The cost of training a row; hours are the planner's, without validations and saves."""
    if row.budget.seconds is not None:
        return RowCost(None, None, None, row.budget.seconds / 3600)
    steps = row.config.train.steps - (row.branch.step if row.branch is not None else 0)
    tokens = steps * row.tokens_per_step
    flops = tokens * flops_per_token(row.config)
    if cluster is None:
        return RowCost(steps, tokens, flops, None)
    if row.launcher == "netlab":
        return RowCost(steps, tokens, flops, None, "the network of launcher netlab is not the cluster's")
    try:
        plan = plan_step(row.config, cluster, row.ranks)
    except ConfigError as error:
        return RowCost(steps, tokens, flops, None, str(error))
    why = "" if plan.fits else f"its {row.ranks} rank(s) do not fit the memory of {cluster.name}"
    return RowCost(steps, tokens, flops, plan.seconds * steps / 3600, why)


def planned_rows(study: Study, directory: StudyDirectory, cluster: Cluster | None = None) -> list[str]:
    """Lines of a dry run: a table of the rows, those to come too, then what is done, what it costs and may surprise.

    Args:
        study: with the rows that are known.
        cluster: whose hours are estimated; None: none are, but for budgets of seconds.
    """
    finished = directory.finished()
    whole = forecast(study, directory.loss)
    known = {row.key for row in study.rows}
    coming = [row for row in whole.rows if (row.name, row.seed) not in {(one.name, one.seed) for one in study.rows}]
    rows = [*study.rows, *coming]
    costs: dict[tuple[str, bool], RowCost] = {}
    for row in rows:
        costs.setdefault((row.name, row.branch is None), row_cost(row, cluster))
    each = [costs[row.name, row.branch is None] for row in rows]
    timed = any(cost.hours is not None for cost in each)
    lines = []
    for row, cost in zip(rows, each, strict=True):
        line = finished.get(row.config_hash)
        state = line.status if line else "trained" if directory.of_row(row).trained.exists() else ""
        lines.append(_cells(row, cost, state if row.key in known else "to come", timed))
    heads = (*HEADS[:-1], "hours", HEADS[-1]) if timed else HEADS
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]
    table = ["  ".join(f"{cell:<{w}}" for cell, w in zip(one, widths, strict=True)).rstrip() for one in (heads, *lines)]
    done = sum(row.config_hash in finished for row in study.rows)
    parts = [f"{len(study.rows)} rows, {done} of them finished", *([f"{len(coming)} to come"] if coming else [])]
    summary = f"{study.name}: {', '.join([*parts, *_totals(each, cluster)])}, in {directory.root}; nothing was started"
    jobs = _jobs(study, [row for row in rows if row.config_hash not in finished])
    return [*table, "", *study.notes(), *jobs, *_notes(rows, each, cluster), summary]


def _jobs(study: Study, rows: Sequence[RowSpec]) -> Iterator[str]:
    """How many rows launcher slurm trains on which nodes."""
    if study.on_slurm:
        for (nodes, ranks, threads), number in Counter(shape_of(row, study.cluster) for row in rows).items():
            yield f"slurm: {number} x {nodes} node(s), {ranks} rank(s) on each, {threads} thread(s) a rank"


def _cells(row: RowSpec, cost: RowCost, state: str, timed: bool) -> tuple[str, ...]:
    counts = count_parameters(row.config)
    seconds = row.budget.seconds
    steps, tokens = row.config.train.steps, row.config.train.steps * row.tokens_per_step
    cells = (
        row.name,
        str(row.seed),
        f"{counts.total:,}",
        f"{counts.active:,}",
        count(flops_per_token(row.config)),
        "" if seconds else f"{tokens:,}",
        f"{seconds:g} s" if seconds else f"{steps:,}",
        str(row.ranks),
    )
    hours = () if not timed else ("" if cost.hours is None else _hours(cost.hours),)
    return (*cells, *hours, state)


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}" if hours >= 0.01 else "< 0.01"


def _totals(costs: Sequence[RowCost], cluster: Cluster | None) -> Iterator[str]:
    """What all rows train together."""
    known = [cost for cost in costs if cost.flops is not None and cost.tokens is not None]
    if known:
        yield f"in all {count(sum(cost.tokens or 0 for cost in known))} tokens"
        yield f"{sum(cost.flops or 0 for cost in known):.3g} FLOPs".replace("+", "")
    hours = [cost.hours for cost in costs if cost.hours is not None]
    if hours:
        some = "" if len(hours) == len(costs) else f" for {len(hours)} of {len(costs)} rows"
        where = "" if cluster is None else f" on {cluster.name}"
        yield f"{_hours(sum(hours))} hours{where}{some} one after another"


def _notes(rows: Sequence[RowSpec], costs: Sequence[RowCost], cluster: Cluster | None) -> Iterator[str]:
    branched = sum(row.branch is not None for row in rows)
    if branched:
        yield f"{branched} rows branch off another one: of their tokens, only those of their own steps are in the sums"
    if any(row.role == "tuning" for row in rows):
        yield "up to two tries more for each model whose best one lies at an end are not in the sums"
    if cluster is None and any(cost.hours is None for cost in costs):
        yield NO_CLUSTER
    elif cluster is not None:
        yield f"hours on {cluster.name} are the planner's, without validations, saves and measuring"
    for why in dict.fromkeys(cost.why for cost in costs if cost.why):
        yield f"{sum(cost.why == why for cost in costs)} row(s): {why}"
