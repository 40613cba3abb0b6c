"""What checks find, and gpu.json, which keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from altup_moe.config.errors import DataError
from altup_moe.config.files import write_text

VERSION = 1
"""Of gpu.json's form."""

State = Literal["passed", "goal not met", "wrong", "failed", "timed out"]
"""goal not met: of speed or memory. wrong: a number differs from what it must be."""
BAD: tuple[State, ...] = ("wrong", "failed", "timed out")


@dataclass(frozen=True)
class Figure:
    """A measured number. ``exact``: its bound is about right and wrong, so that a rehearsal is judged by it too."""

    what: str
    value: float
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    exact: bool = False

    @property
    def met(self) -> bool | None:
        """Whether it is within its bound (NaN is not); None if it has none."""
        if self.at_most is not None:
            return self.value <= self.at_most
        return None if self.at_least is None else self.value >= self.at_least

    @property
    def goal(self) -> str:
        """Its bound in words; "" if it has none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


@dataclass
class Found:
    """What a check returns. ``data``: numbers for later use, of JSON's types. ``notes``: lines for the page."""

    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A check that was run. ``error``: the end of it, if it failed. ``commit``: of the code that ran."""

    state: State
    seconds: float
    when: str
    commit: str
    found: Found
    error: str = ""


def state_of(found: Found, rehearsal: bool) -> State:
    """How a check that came to its end is judged. Speeds of a rehearsal are not."""
    missed = [figure for figure in found.figures if figure.met is False]
    if any(figure.exact for figure in missed):
        return "wrong"
    return "goal not met" if missed and not rehearsal else "passed"


@dataclass
class ResultFile:
    """gpu.json: the machine, whether it is a rehearsal, and the results by check. Written whole at every change."""

    path: Path
    rehearsal: bool
    machine: dict[str, Any] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> ResultFile | None:
        """What an earlier call left; None if there is nothing. Raises DataError: it is no such file."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(path, f"is no JSON ({error}); remove it, or name another --directory") from None
        if not isinstance(found, dict) or found.get("version") != VERSION:
            raise DataError(path, "is not what this version of bench gpu writes; name another --directory")
        results = {name: _result(values) for name, values in found["checks"].items()}
        return cls(path, found["rehearsal"], found["machine"], results)

    def add(self, name: str, result: Result) -> None:
        """Keep a result, on the disk too."""
        self.results[name] = result
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_text(self.path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """As in the file. Numbers that JSON does not know are null."""
        checks = {name: _plain(asdict(result)) for name, result in self.results.items()}
        return {"version": VERSION, "rehearsal": self.rehearsal, "machine": self.machine, "checks": checks}


def found_from(values: Mapping[str, Any]) -> Found:
    """`Found` from a JSON object."""
    figures = [
        Figure(**{**one, "value": math.nan if one["value"] is None else one["value"]}) for one in values["figures"]
    ]
    return Found(figures, list(values["notes"]), dict(values["data"]))


def _result(values: Mapping[str, Any]) -> Result:
    return Result(**{**values, "found": found_from(values["found"])})


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
