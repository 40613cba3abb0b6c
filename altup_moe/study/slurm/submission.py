"""Which rows are submitted together. Pure functions of the rows and of what is in the queue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from altup_moe.study.slurm.batches import BatchKind
from altup_moe.study.slurm.cluster import Cluster
from altup_moe.study.spec import RowSpec

WAITED_FOR_MOST = 100
"""Tasks that one job waits for in the queue."""
ARRAY_MOST = 500
"""Tasks of one array; SLURM's MaxArraySize is 1001 if nothing else is said."""
Shape = tuple[int, int, int]
"""Nodes, ranks on each, threads of a rank: what all rows of an array have in common."""


@dataclass(frozen=True)
class Submission:
    """Rows for one call of sbatch.

    ``after``: keys of the rows whose tasks must have succeeded before. ``most``: tasks at a time.
    """

    rows: tuple[RowSpec, ...]
    kind: BatchKind = "train"
    after: tuple[str, ...] = ()
    most: int | None = None


def shape_of(row: RowSpec, cluster: Cluster) -> Shape:
    """What its job asks for."""
    return (*cluster.place(row.ranks), row.threads)


def submissions(
    rows: Sequence[RowSpec], live: Iterable[str], trained: Iterable[str], cluster: Cluster, most: int | None
) -> list[Submission]:
    """The calls of sbatch that are due, in order: a row stands after the one that it waits for.

    Rows without a predecessor, or with a trained one, are arrays, one for each shape. A row whose predecessor is in the
    queue, or comes into it by one of these calls, waits for it there.

    Args:
        rows: that may be trained, neither trained nor in the queue.
        live: keys of the rows in the queue.
        trained: keys of the rows that are trained.
        most: rows in the queue at a time. One array that holds all of them is limited by SLURM itself; otherwise only
            as many are submitted as may run, and those that wait for others not at all.
    """
    queued, done = list(live), set(trained)
    heads = [row for row in rows if row.before is None or row.before.key in done]
    followers = [row for row in rows if row not in heads]
    if most is None:
        found = _arrays(heads, cluster)
        known = {*queued, *(row.key for row in heads)}
        for row in followers:
            assert row.before is not None
            if row.before.key in known:
                known.add(row.key)
                found.append(Submission((row,), after=(row.before.key,)))
        return found
    arrays = _arrays(heads, cluster)
    if not queued and not followers and len(arrays) == 1:
        return [Submission(arrays[0].rows, most=most)]
    return _arrays(heads[: max(0, most - len(queued))], cluster)


def _arrays(rows: Sequence[RowSpec], cluster: Cluster) -> list[Submission]:
    by_shape: dict[Shape, list[RowSpec]] = {}
    for row in rows:
        by_shape.setdefault(shape_of(row, cluster), []).append(row)
    return [
        Submission(tuple(alike[first : first + ARRAY_MOST]))
        for alike in by_shape.values()
        for first in range(0, len(alike), ARRAY_MOST)
    ]


def alone(groups: Sequence[Sequence[RowSpec]], grows: bool) -> set[str]:
    """Keys of the rows that are measured at the end of their own job: no other row has, or will have, their layout.

    Args:
        groups: the study's rows by layout. grows: whether further rows may follow.
    """
    return set() if grows else {group[0].key for group in groups if len(group) == 1}


def to_measure(
    groups: Sequence[Sequence[RowSpec]],
    pending: Collection[str],
    trained: Collection[str],
    training: Collection[str],
    grows: bool,
    ahead: bool,
) -> list[Submission]:
    """The groups whose measuring can be submitted now, each as those of its rows that have no line yet.

    A group waits for all of its rows, since they take turns; where further rows may follow, for all rows of the study.

    Args:
        groups: the study's rows by layout.
        pending: keys of the rows without a line. trained: of the trained rows. training: of those whose task is in the
            queue.
        grows: whether further rows may follow.
        ahead: a job may wait in the queue for the rows of its group that are not trained yet.
    """
    found = []
    for group in groups:
        rows = tuple(row for row in group if row.key in pending)
        after = tuple(row.key for row in rows if row.key not in trained)
        waits = ahead and len(group) > 1 and len(after) <= WAITED_FOR_MOST and all(key in training for key in after)
        if not after or (waits and not grows):
            found += [Submission(rows, "measure", after)] if rows else []
        elif grows:
            return []
    return found
