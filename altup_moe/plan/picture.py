"""A simulated schedule as recordings, which `altup_moe.timeline` draws like those of real steps."""

from __future__ import annotations

from altup_moe.plan.step import StepPlan
from altup_moe.timeline.records import Recording, Span, Step


def recordings(plan: StepPlan) -> list[Recording]:
    """One recording for each pipeline stage: its passes, then reduction and update. Times: ns from the start."""
    found = []
    end = round(1e9 * plan.seconds)
    for number, stage in enumerate(plan.stages):
        mine = [slot for slot in plan.slots if slot.stage == number]
        spans = [
            Span(
                f"chunk {slot.task.chunk}",
                "compute",
                round(1e9 * slot.begin),
                round(1e9 * slot.end),
                "backward" if slot.task.backward else "forward",
            )
            for slot in mine
        ]
        begin = spans[-1].end_ns
        reduced = min(end, begin + round(1e9 * stage.reduce))
        spans.append(Span("reduce", "flight", begin, reduced))
        spans.append(Span("update", "compute", reduced, min(end, reduced + round(1e9 * stage.update))))
        found.append(Recording(stage.coordinates.rank, "planned", spans, [Step(0, end)]))
    return found
