"""Read a coordinate check: the size of activations by width, as `coordinates.json` of a study's directory has it.

The check is that of muP (Yang et al. 2021, arXiv 2203.03466, appendix D.1): after a few steps, the root mean square of
what a layer gives should not depend on the width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from altup_moe.config import UserError

FILE = "coordinates.json"
_TYPES: dict[str, tuple[type, ...]] = {
    "family": (str,),
    "parametrization": (str,),
    "width": (int,),
    "step": (int,),
    "name": (str,),
    "rms": (int, float),
}


@dataclass(frozen=True)
class Coordinate:
    """Root mean square of an activation (`name`) of a model of a width after a step."""

    family: str
    parametrization: str
    width: int
    step: int
    name: str
    rms: float


@dataclass(frozen=True)
class CoordinatePanel:
    """A family under a parametrization at its last step. `lines`: name -> (width, RMS) by width.

    left_out: values that are 0 or not finite, which a logarithmic axis cannot show.
    """

    family: str
    parametrization: str
    step: int
    lines: dict[str, list[tuple[int, float]]]
    left_out: int


def read_coordinates(directory: Path) -> tuple[CoordinatePanel, ...]:
    """Panels of a study's coordinate check; none if it has no such file.

    Raises:
        UserError: a file that cannot be read, or that has another form.
    """
    path = directory / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: is no JSON: {error}") from None
    points = content.get("points") if isinstance(content, dict) else None
    if not isinstance(points, list):
        raise UserError(f"{path}: points={points!r}; a list of points would fit")
    return tuple(panels(_point(path, number, point) for number, point in enumerate(points)))


def _point(path: Path, number: int, values: Any) -> Coordinate:
    if not isinstance(values, dict):
        raise UserError(f"{path}: points.{number}={values!r}; an object with {', '.join(_TYPES)} would fit")
    # A value that is not finite may be written as null.
    found = {**values, "rms": math.nan} if values.get("rms", 0) is None else values
    for key, types in _TYPES.items():
        value: Any = found.get(key)
        if type(value) not in types or (key == "width" and value < 1):
            fits = "a number above 0" if key == "width" else "text" if types == (str,) else "a number"
            raise UserError(f"{path}: points.{number}.{key}={value!r}; {fits} would fit")
    return Coordinate(**{key: found[key] for key in _TYPES})


def panels(points: Iterable[Coordinate]) -> list[CoordinatePanel]:
    """Points by family and parametrization, each at its last step."""
    grouped: dict[tuple[str, str], list[Coordinate]] = {}
    for point in points:
        grouped.setdefault((point.family, point.parametrization), []).append(point)
    found = []
    for (family, parametrization), own in grouped.items():
        step = max(point.step for point in own)
        last = [point for point in own if point.step == step]
        shown = [point for point in last if math.isfinite(point.rms) and point.rms > 0]
        lines: dict[str, list[tuple[int, float]]] = {}
        for point in sorted(shown, key=lambda one: one.width):
            lines.setdefault(point.name, []).append((point.width, point.rms))
        found.append(CoordinatePanel(family, parametrization, step, lines, len(last) - len(shown)))
    return found


def exponent(line: Sequence[tuple[int, float]]) -> float | None:
    """The power of the width with which a line grows, by least squares of the logarithms; None from one width."""
    if len({width for width, _ in line}) < 2:
        return None
    width, rms = np.log(np.array(line, dtype=np.float64)).T
    return float(np.polyfit(width, rms, 1)[0])
