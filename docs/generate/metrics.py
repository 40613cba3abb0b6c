"""The page of metrics.jsonl, from the record that is written."""

from __future__ import annotations

from altup_moe.report.metric_groups import METRICS
from docs.generate.markdown import cell, docstring, table, text_of
from docs.generate.source import Named, fields

FILE, RECORD = "altup_moe/train/metrics.py", "StepMetrics"
CHANGED = "changed"
"""The key that the logger adds by itself."""
TASK_SCORE = "eval/TASK/METRIC"
"""The keys of `StepMetrics.scores`."""


def documented() -> list[Named]:
    """Every field of a step's record that is in its line."""
    return [one for one in fields(FILE, RECORD) if one.name not in ("routing", "scores")]


def page() -> str:
    """The page's text."""
    return text_of(
        [
            "# metrics.jsonl",
            "",
            f"A run writes one JSON object a step, on one line. The fields are those of `{RECORD}` in `{FILE}`.",
            "TensorBoard, Weights & Biases and MLflow group them by the part of a name before the slash.",
            "",
            *table(
                ["key", "in trackers", "type", "when", "what it is"],
                [
                    *([f"`{one.name}`", _tracked(one), *_kind(one), cell(docstring(one.doc))] for one in documented()),
                    [
                        f"`{TASK_SCORE}`",
                        f"`{TASK_SCORE}`",
                        "number",
                        "validation, with `train.eval_tasks`",
                        "A metric of a task's answers, in percent.",
                    ],
                    [
                        f"`{CHANGED}`",
                        "",
                        "object",
                        "first step after a resume that changes keys",
                        "Dotted key -> [value before, value now], of the configuration's keys that have another value.",
                    ],
                ],
            ),
            "",
            "Trackers get more of the routing: `routing/layer_NN/load_imbalance` and `routing/layer_NN/dropped_share`",
            "of each layer, the load of each expert over its layer's mean (`routing/layer_NN/expert_NN`, of up to 256",
            "experts in all), and a picture of them all, `routing/load`. Layers and experts count from 0. These are",
            "sums over the steps of a line of `routing.jsonl`, which `log.routing_interval` sets. Its keys: `step` and",
            "`steps` (the sum is over `steps` steps that end with `step`), `routes` (layer by layer, how often each",
            "expert was chosen, before dropping; an empty list without experts), `dropped` (layer by layer).",
            "",
            "A run that an older version began goes on in trackers under these names: its older steps stay where they",
            "are, under the keys of the first column.",
            "",
            "A number that is infinite or not a number is `null`. A key whose value does not exist is left out.",
            "",
            "On resume, lines of steps that are done again move to `metrics.removed.jsonl`, and so do lines that a",
            "crash left half written: the file has each step once. `altup_moe/config/metrics_lines.py` reads it.",
        ]
    )


def _kind(one: Named) -> tuple[str, str]:
    words = {"int": "whole number", "float": "number"}
    kind = one.kind.removesuffix(" | None")
    optional = one.kind != kind
    when = "every step" if not optional else "validation" if one.name.startswith("valid_") else "MoE layers"
    if one.name.endswith("_ms"):
        when = "end of a profile"
    return words.get(kind, kind), when


def _tracked(one: Named) -> str:
    return next((f"`{metric.path}`" for metric in METRICS if metric.key == one.name), "")
