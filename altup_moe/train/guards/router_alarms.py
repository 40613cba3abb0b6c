"""Routers that collapse: an expert that most tokens of a layer choose, or a layer that drops most of its routes."""

from __future__ import annotations

from altup_moe.config.model_schema import MoEConfig
from altup_moe.train.routing import RoutingSummary


class RouterAlarms:
    """Counts steps in a row in which a bound is passed. Mutable; a resumed run counts anew."""

    def __init__(self, moe: MoEConfig) -> None:
        self.moe = moe
        self.on = bool(moe.num_experts) and (moe.alarm_expert_share, moe.alarm_dropped_share) != (None, None)
        self._steps: dict[str, int] = {}

    def step(self, summary: RoutingSummary | None) -> tuple[int | None, list[str]]:
        """(alarms that are on after this step, a line for each that has just come on); None where no bound is set."""
        if not self.on or summary is None:
            return None, []
        over = passed_bounds(summary, self.moe)
        self._steps = {what: self._steps.get(what, 0) + 1 for what in over}
        enough = self.moe.alarm_steps
        new = [what for what, steps in self._steps.items() if steps == enough]
        lines = [f"router alarm: {over[what]} for {enough} steps in a row" for what in new]
        return sum(steps >= enough for steps in self._steps.values()), lines


def passed_bounds(summary: RoutingSummary, moe: MoEConfig) -> dict[str, str]:
    """What passes its bound in a step -> in words. Layers and experts are numbered from 0, as in routing.jsonl."""
    found: dict[str, str] = {}
    for layer, (counts, dropped) in enumerate(zip(summary.counts, summary.dropped, strict=True)):
        routes = sum(counts)
        if not routes:
            continue
        for expert, count in enumerate(counts):
            share = count * moe.top_k / routes
            if moe.alarm_expert_share is not None and share > moe.alarm_expert_share:
                who, bound = f"layer {layer}, expert {expert}", f"moe.alarm_expert_share {moe.alarm_expert_share:g}"
                found[who] = f"{who} takes {share:.0%} of the tokens ({bound})"
        if moe.alarm_dropped_share is not None and dropped / routes > moe.alarm_dropped_share:
            bound = f"moe.alarm_dropped_share {moe.alarm_dropped_share:g}"
            found[f"layer {layer}"] = f"layer {layer} drops {dropped / routes:.0%} of its routes ({bound})"
    return found
