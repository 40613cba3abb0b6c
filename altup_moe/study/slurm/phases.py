"""What rows do, as far as SLURM and the study's files say."""

from __future__ import annotations

from collections.abc import Mapping

from altup_moe.study.progress import RowPhase
from altup_moe.study.slurm.batches import Batches, Place
from altup_moe.study.slurm.commands import QueuedTask, SlurmAwayError, queue


def phase_of(place: Place, task: QueuedTask | None) -> RowPhase:
    """What a row does whose task is in the queue; `waiting` without a task."""
    if task is None or not task.live:
        return "waiting"
    if not task.waits:
        return "training"
    return "queued" if place.directory.beginning(place.index) is None else "requeued"


def phases_now(batches: Batches) -> tuple[dict[str, RowPhase], str | None]:
    """What the rows of a study do, for `status`, which may run where SLURM's programs are not.

    Returns:
        key -> phase, and why only the study's files say it (None: squeue says it).
    """
    places = batches.places("train")
    if not places:
        return {}, None
    try:
        tasks: Mapping[str, QueuedTask] = queue()
    except (SlurmAwayError, OSError) as error:
        begun = {key: place.directory.beginning(place.index) for key, place in places.items()}
        phases: dict[str, RowPhase] = {key: "queued" if begun[key] is None else "training" for key in places}
        return phases, f"{error}; so its jobs are shown as their files leave them"
    return {key: phase_of(place, tasks.get(place.task or "")) for key, place in places.items()}, None
