"""The page of metrics.jsonl, from the record that is written."""

from __future__ import annotations

from docs.generate.markdown import cell, docstring, table, text_of
from docs.generate.source import Named, fields

FILE, RECORD = "altup_moe/train/metrics.py", "StepMetrics"
CHANGED = "changed"
"""The key that the logger adds by itself."""


def documented() -> list[Named]:
    """Every field of a step's record."""
    return fields(FILE, RECORD)


def page() -> str:
    """The page's text."""
    return text_of(
        [
            "# metrics.jsonl",
            "",
            f"A run writes one JSON object a step, on one line. The fields are those of `{RECORD}` in `{FILE}`.",
            "TensorBoard, Weights & Biases and MLflow get the same numbers under the same names.",
            "",
            *table(
                ["key", "type", "when", "what it is"],
                [
                    *([f"`{one.name}`", *_kind(one), cell(docstring(one.doc))] for one in documented()),
                    [
                        f"`{CHANGED}`",
                        "object",
                        "first step after a resume that changes keys",
                        "Dotted key -> [value before, value now], of the configuration's keys that have another value.",
                    ],
                ],
            ),
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
    return words.get(kind, kind), when
