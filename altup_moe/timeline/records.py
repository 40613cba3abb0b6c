"""A recording: the spans of one rank, in nanoseconds of its host's clock. Plain data, written as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

SpanKind = Literal["compute", "flight", "wait"]
SpanPhase = Literal["forward", "backward"]
WARM_UP = 2
"""Steps before the recorded ones: the first ones allocate."""


@dataclass(frozen=True)
class Span:
    """One interval of a rank.

    `compute`: the compute thread (on CUDA: its stream) was busy with `name`.
    `flight`: the exchange `name` was under way, from its launch to its completion.
    `wait`: the compute thread was blocked until `name` completed.
    Spans of one kind may nest and may overlap in any order. Times are ns of the host's monotonic clock.
    """

    name: str
    kind: SpanKind
    begin_ns: int
    end_ns: int
    phase: SpanPhase = "forward"


@dataclass(frozen=True)
class Step:
    """Begin and end of one training step, ns of the same clock."""

    begin_ns: int
    end_ns: int


@dataclass
class Recording:
    """Everything one rank recorded; filled when the recording ends, spans in order of their begin.

    Processes of one `host` share its clock; recordings of several hosts are aligned by their first step.
    """

    rank: int
    host: str = ""
    spans: list[Span] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The recording as JSON's types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recording:
        """The inverse of `to_dict`."""
        spans = [Span(**span) for span in values["spans"]]
        return cls(values["rank"], values["host"], spans, [Step(**step) for step in values["steps"]])

    def whole(self) -> list[Step]:
        """The steps; all spans as one step where none was marked; none where nothing was recorded."""
        if self.steps or not self.spans:
            return self.steps
        return [Step(min(s.begin_ns for s in self.spans), max(s.end_ns for s in self.spans))]


def write_recording(path: Path, recording: Recording) -> None:
    """Write one rank's recording as JSON."""
    path.write_text(json.dumps(recording.to_dict()), encoding="utf-8")


def read_recording(path: Path) -> Recording:
    """Read what `write_recording` wrote."""
    return Recording.from_dict(json.loads(path.read_text(encoding="utf-8")))
