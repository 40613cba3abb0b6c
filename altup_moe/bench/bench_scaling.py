"""`altup-moe bench scaling`: one model on 1, 2, 4 ... ranks, strong and weak, beside the planner's prediction.

Started alone it starts itself on each number of ranks in turns, by torchrun's launcher or on a netlab. Started on ranks
by any launcher (SLURM too) it measures that number and adds it to --directory; --report then prints all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path

from altup_moe.bench.options import ScalingBench
from altup_moe.bench.scaling.points import (
    SHAPE,
    Point,
    Scaling,
    add_points,
    check_points,
    measure_points,
    modes,
    read_points,
    scaling_config,
    scalings,
)
from altup_moe.bench.stepper import milliseconds_text
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.files import check_directory

WHERE = "ALTUP_MOE_BENCH_WHERE"
"""Tells the ranks how they were started, for their points."""


Planner = Callable[[RunConfig, str, int], float]
"""Planned seconds of a step: of a run, on a cluster, on so many ranks."""


def bench_scaling(bench: ScalingBench, world_size: int, planner: Planner) -> int:
    """Measure and print a table, or one JSON object; on ranks, add what is measured to the directory."""
    if "RANK" in os.environ:
        return _on_ranks(bench, world_size)
    with _place(bench.directory) as directory:
        if not bench.report:
            check_points(bench)
            for _ in range(bench.rounds):
                for ranks in bench.ranks:
                    _start(bench, ranks, directory)
        points = read_points(directory)
    found = [_planned(bench, one, points[0], planner) for one in scalings(points)]
    if bench.picture is not None:
        from altup_moe.bench.scaling.picture import write_scaling_picture

        write_scaling_picture(Path(bench.picture), found)
    if bench.json:
        content = {"shape": points[0].shape, "processor": points[0].processor, "torch": points[0].torch}
        print(json.dumps({**content, "points": [asdict(one) for one in found]}))
    else:
        print("\n".join(_table(found, points)))
    return 0


def _on_ranks(bench: ScalingBench, ranks: int) -> int:
    if bench.directory is None:
        raise ConfigError("directory", None, "on ranks it says where their points go, as in --directory runs/scaling")
    directory = Path(bench.directory)
    if ranks not in bench.ranks:
        bench = replace(bench, ranks=(*bench.ranks, ranks))
    check_points(bench)
    points = measure_points(bench, ranks, os.environ.get(WHERE, f"{ranks} rank(s)"))
    if points:
        directory.mkdir(parents=True, exist_ok=True)
        add_points(directory, points)
    return 0


@contextmanager
def _place(directory: str | None) -> Iterator[Path]:
    if directory is not None:
        check_directory("directory", Path(directory))
        Path(directory).mkdir(parents=True, exist_ok=True)
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def start_command(bench: ScalingBench, ranks: int, directory: Path) -> list[str]:
    """The command that measures a number of ranks."""
    program = [sys.executable, "-P", "-m", "altup_moe"]
    if bench.launcher == "netlab" and ranks > 1:
        rate = [] if bench.rate is None else ["--rate", bench.rate]
        launch = [*program, "launch", "netlab", "--nodes", str(ranks), *rate, "--"]
    else:
        launch = [*program, "launch", "torchrun", "--ranks-per-node", str(ranks), "--"]
    own = [*program, "bench", "scaling", "--directory", str(directory), "--ranks", *map(str, bench.ranks)]
    usual = {one.name: one.default for one in fields(ScalingBench)}
    for name in (*SHAPE, "repeats", "recorded"):
        if getattr(bench, name) != usual[name]:
            own += [f"--{name.replace('_', '-')}", str(getattr(bench, name))]
    return [*launch, *own]


def _start(bench: ScalingBench, ranks: int, directory: Path) -> None:
    where = bench.launcher + ("" if bench.rate is None else f" {bench.rate}")
    environment = {**os.environ, WHERE: where, "OMP_NUM_THREADS": str(bench.threads)}
    done = subprocess.run(start_command(bench, ranks, directory), env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else "it printed nothing"
        raise UserError(f"{ranks} rank(s) ended with exit code {done.returncode}: {last}")


def _planned(bench: ScalingBench, one: Scaling, point: Point, planner: Planner) -> Scaling:
    """With the planner's seconds for that step, where a cluster is given and fits."""
    if bench.cluster is None:
        return one
    measured = replace(bench, **point.shape, ranks=(*bench.ranks, one.ranks))
    samples = modes(measured, one.ranks).get(one.mode, measured.samples // one.ranks)
    return replace(one, planned=planner(scaling_config(measured, one.ranks, samples), bench.cluster, one.ranks))


def _table(found: Sequence[Scaling], points: Sequence[Point]) -> list[str]:
    shape = points[0].shape
    lines = [
        f"hidden {shape['hidden_size']}, {shape['num_layers']} layers, K = {shape['width']}, {shape['moe_experts']} "
        f"experts top-2 over all ranks, sequence {shape['seq_length']}, {shape['samples']} samples, fp32, "
        f"{shape['threads']} thread(s) a rank; {points[0].processor}",
        "",
        "mode    ranks  started by        | step ms (min .. max)          tokens/s  efficiency | "
        "exchange ms  waited for | planned ms",
    ]
    for one in found:
        planned = "-" if one.planned is None else f"{1e3 * one.planned:.1f}"
        taken = milliseconds_text(one.seconds, one.least, one.most)
        lines.append(
            f"{one.mode:<7} {one.ranks:>5}  {one.where:<17} | {taken:<28}{one.tokens_per_second:>10,.0f} "
            f"{one.efficiency:>11.2f} | {one.exchange_ms:>11.1f} {one.exposed_ms:>11.1f} | {planned:>10}"
        )
    return lines
