"""One number of ranks: which model it steps, and the point that it measures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from altup_moe.bench.options import ScalingBench, StepBench
from altup_moe.config import ConfigError, ParallelConfig, RunConfig
from altup_moe.config.checks import check_config

Mode = Literal["strong", "weak"]
POINTS = "points.jsonl"
SHAPE = ("hidden_size", "num_layers", "seq_length", "samples", "width", "moe_experts", "threads")
"""Options that points must share to be compared."""


@dataclass(frozen=True)
class Point:
    """What one start of so many ranks measured in a mode.

    Attributes:
        shape: the values of `SHAPE`. where: launcher, and rate of its links. seconds: of each timed step.
        exchange_ms, exposed_ms: of a step: exchanges in flight, and the part that a rank waited for; medians.
    """

    mode: Mode
    ranks: int
    shape: dict[str, Any]
    where: str
    tokens: int
    seconds: tuple[float, ...]
    exchange_ms: float
    exposed_ms: float
    processor: str
    torch: str


def modes(bench: ScalingBench, ranks: int) -> dict[Mode, int]:
    """Samples of a step on each rank, by mode; on the most ranks both are the same step, which is measured once."""
    most = max(bench.ranks)
    weak = bench.samples // most
    return {"strong": bench.samples // ranks} if ranks == most else {"strong": bench.samples // ranks, "weak": weak}


def scaling_config(bench: ScalingBench, ranks: int, samples: int) -> RunConfig:
    """The model on so many ranks, with so many samples of a step on each."""
    from altup_moe.bench.stepper import run_config

    shape = {name: getattr(bench, name) for name in ("hidden_size", "num_layers", "seq_length", "moe_experts")}
    config = run_config(StepBench(micro_batch_size=samples, **shape), bench.width)
    # A small vocabulary: its products would hide what the layers' exchanges cost.
    model = replace(config.model, vocab_size=1024)
    train = replace(config.train, global_batch_size=samples * ranks)
    return replace(config, model=model, train=train, parallel=ParallelConfig(expert=ranks))


def check_points(bench: ScalingBench) -> None:
    """Raise ConfigError unless the samples and experts can be dealt to each number of ranks."""
    for ranks in bench.ranks:
        for key in ("samples", "moe_experts"):
            if getattr(bench, key) % ranks:
                fits = f"must be a multiple of each of ranks ({', '.join(map(str, bench.ranks))})"
                raise ConfigError(key, getattr(bench, key), fits)
        for samples in modes(bench, ranks).values():
            check_config(scaling_config(bench, ranks, samples), ranks)


def measure_points(bench: ScalingBench, ranks: int, where: str) -> list[Point]:
    """On each of so many ranks: the points of both modes; rank 0 alone knows them. Collective."""
    import torch

    from altup_moe.bench.recorded_steps import recorded_steps, report_of_all
    from altup_moe.bench.stepper import Stepper, interleaved
    from altup_moe.parallel.machine import processor
    from altup_moe.parallel.topology import topology

    torch.set_num_threads(bench.threads)
    shape = {name: getattr(bench, name) for name in SHAPE}
    with topology(ParallelConfig(expert=ranks)) as topo:
        wanted = modes(bench, ranks)
        steppers = {mode: Stepper(scaling_config(bench, ranks, samples), topo) for mode, samples in wanted.items()}
        seconds = interleaved(steppers, bench.repeats)
        reports = {
            mode: report_of_all(recorded_steps(stepper, bench.recorded), topo) for mode, stepper in steppers.items()
        }
        if not topo.is_first:
            return []
    return [
        Point(
            mode,
            ranks,
            shape,
            where,
            ranks * wanted[mode] * bench.seq_length,
            tuple(seconds[mode]),
            reports[mode].exchange_ms,
            reports[mode].exposed_ms,
            processor(),
            torch.__version__,
        )
        for mode in steppers
    ]


def add_points(directory: Path, points: Iterable[Point]) -> None:
    """Append them to a directory's file."""
    with open(directory / POINTS, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(point)) + "\n" for point in points)


def read_points(directory: Path) -> list[Point]:
    """All points of a directory. Raises ConfigError if it has none, or some that do not compare."""
    file = directory / POINTS
    if not file.is_file():
        raise ConfigError("directory", str(directory), f"holds no {POINTS}; without --report it is measured")
    try:
        points = [Point(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise ConfigError("directory", str(directory), f"{POINTS} is damaged: {error}") from None
    if not points:
        raise ConfigError("directory", str(directory), f"{POINTS} holds no point")
    for point in points:
        if (point.shape, point.processor) != (points[0].shape, points[0].processor):
            fits = "holds points of other shapes or processors; another directory for each would fit"
            raise ConfigError("directory", str(directory), fits)
    return points


@dataclass(frozen=True)
class Scaling:
    """A number of ranks in a mode, all its rounds together.

    ``efficiency``: strong: seconds of the fewest ranks over those here times the ranks' ratio; weak: without the ratio.
    ``planned``: seconds of a step by the planner; None without a cluster.
    """

    mode: Mode
    ranks: int
    where: str
    seconds: float
    least: float
    most: float
    tokens_per_second: float
    efficiency: float
    exchange_ms: float
    exposed_ms: float
    planned: float | None = None


def scalings(points: Iterable[Point]) -> list[Scaling]:
    """The medians of all rounds, by mode, launcher and ranks."""
    grouped: dict[tuple[Mode, str, int], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.mode, point.where, point.ranks), []).append(point)
    most = {where: max(ranks for _, other, ranks in grouped if other == where) for _, where, _ in grouped}
    for (mode, where, ranks), of_both in list(grouped.items()):
        if mode == "strong" and ranks == most[where]:
            grouped.setdefault(("weak", where, ranks), of_both)
    found: list[Scaling] = []
    for mode, where, ranks in sorted(grouped):
        of_one = grouped[mode, where, ranks]
        seconds = [one for point in of_one for one in point.seconds]
        median = statistics.median(seconds)
        first = next((one for one in found if (one.mode, one.where) == (mode, where)), None)
        efficiency = 1.0
        if first is not None:
            efficiency = first.seconds / median * (first.ranks / ranks if mode == "strong" else 1.0)
        figures = [statistics.median(getattr(one, name) for one in of_one) for name in ("exchange_ms", "exposed_ms")]
        found.append(
            Scaling(
                mode, ranks, where, median, min(seconds), max(seconds), of_one[0].tokens / median, efficiency, *figures
            )
        )
    return found
