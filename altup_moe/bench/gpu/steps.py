"""Time of a training step: wider streams over the plain one. On one GPU nothing flies, so mixing is on the path."""

from __future__ import annotations

import statistics

from altup_moe.bench.gpu.memory import name_of
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Shape, Sizes, step_runs
from altup_moe.bench.stepper import Stepper, interleaved
from altup_moe.config import ParallelConfig
from altup_moe.parallel.topology import topology

STEP_GOALS = {2: 1.02, 4: 1.04}
"""Width K: step over that of K = 1, at most. Deferred mixing is the one that is trained with."""


def steps(sizes: Sizes) -> Found:
    """Medians over interleaved steps of all widths, for each model."""
    found = Found(data={"seconds": {}, "sizes": name_of(sizes)})
    with topology(ParallelConfig()) as topo:
        for shape in sizes.steps:
            steppers = {name: Stepper(run, topo) for name, run in step_runs(shape).items()}
            taken = interleaved(steppers, sizes.repeats)
            del steppers
            medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
            found.data["seconds"][shape.name] = medians
            found.figures += step_figures(shape, medians)
    return found


def step_figures(shape: Shape, medians: dict[str, float]) -> list[Figure]:
    """The plain step in ms and its tokens a second, and the others over it."""
    plain = medians["K = 1"]
    figures = [
        Figure(f"{shape.name}, K = 1: step", 1e3 * plain, "ms"),
        Figure(f"{shape.name}, K = 1: tokens a second", shape.samples * shape.seq / plain),
    ]
    for name, seconds in medians.items():
        if name != "K = 1":
            width = int(name.removeprefix("K = ").partition(",")[0])
            goal = STEP_GOALS[width] if name.endswith("deferred") else None
            figures.append(Figure(f"{shape.name}, {name}: step over K = 1", seconds / plain, at_most=goal))
    return figures
