"""Plan a run on a cluster: parameters, operations, memory, bytes on every link, time. Starts no run.

    altup-moe plan CONFIG --cluster h100x8 --nodes 128 [--set parallel.tensor=4 ...] [--timeline DIR] [--json]
    altup-moe plan CONFIG --cluster h100x8 --nodes 16 --search
    altup-moe plan CONFIG --cluster h100x8 --sweep gpus=8..1024
    altup-moe plan published          published runs beside the model's figures
    altup-moe plan measure [FILE] [--netlab RATE]   this machine as a cluster file
    altup-moe plan compare FILE [--netlab RATE]     planned and measured step times, eight layouts, two cores

With --netlab 400mbit each rank is a node of a simulated network of that rate (launch/netlab; needs root).

Exit codes: 0; 1 the run does not fit the memory, or no layout fits; 2 a wrong value (one line names it).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.command import ended
from altup_moe.config.flags import parse, print_help
from altup_moe.config.load import load_config
from altup_moe.launch.netlab import run_on_netlab
from altup_moe.launch.netplan import bits_per_second
from altup_moe.parallel.start_ranks import Start
from altup_moe.plan.cluster import Cluster, cluster_yaml, load_cluster
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.picture import recordings
from altup_moe.plan.published import PUBLISHED_RUNS, planned
from altup_moe.plan.report import found_dict, found_rows, plan_dict, plan_lines, published_rows
from altup_moe.plan.search import search, sweep
from altup_moe.plan.step import plan_step


@dataclass(frozen=True)
class PlanOptions:
    """What a run would cost on a cluster, computed without starting it. Commands: `published`, `measure`, `compare`.

    Exit code 0: it fits. 1: it does not fit the memory, or no layout fits. 2: a wrong value.
    """

    config: Positional[Path]
    """A run's YAML file."""
    cluster: str = "h100x8"
    """A kind of node (configs/clusters), or a file of that form."""
    nodes: int = 1
    """Nodes of the cluster."""
    gpus: int | None = None
    """GPUs; None is all GPUs of the nodes."""
    set: tuple[str, ...] = ()
    """Fields to change: parallel.tensor=4 train.recompute=full ..."""
    imbalance: float = 1.0
    """Rows of the fullest expert rank, over the mean."""
    straggler: float = 1.0
    """Compute time of the slowest GPU, over the mean."""
    search: bool = False
    """Search for layouts that fit, and list the fastest."""
    sweep: str | None = None
    """gpus=FROM..TO: list the fastest layout for each doubling of the GPUs."""
    keep: int = 10
    """Number of layouts to list."""
    timeline: Path | None = None
    """Directory for the simulated step: trace.json (Perfetto, Chrome) and step.png."""
    json: bool = False
    """Print one JSON object."""


def plan(options: PlanOptions) -> int:
    """Plan one layout, or search for layouts. Returns the exit code."""
    config = load_config(options.config, [f"--{word}" for word in options.set])
    cluster = load_cluster(options.cluster)
    gpus = options.gpus or options.nodes * cluster.gpus_per_node
    factors = Factors(options.imbalance, options.straggler)
    if options.search or options.sweep:
        sizes = _sizes(options.sweep) if options.sweep else []
        one = search(config, cluster, gpus, factors, options.keep) if options.search else []
        found = [*one, *sweep(config, cluster, sizes, factors)]
        print(json.dumps([found_dict(f) for f in found]) if options.json else "\n".join(found_rows(found)))
        return 0 if found else 1
    return _one(options, config, cluster, gpus, factors)


def _one(options: PlanOptions, config: RunConfig, cluster: Cluster, gpus: int, factors: Factors) -> int:
    result = plan_step(config, cluster, gpus, factors)
    if options.timeline is not None:
        _draw(options.timeline, recordings(result))
    if options.json:
        print(json.dumps(plan_dict(config, cluster, result)))
    else:
        print("\n".join(plan_lines(config, cluster, result)))
    return 0 if result.fits else 1


def _draw(directory: Path, recorded: list) -> None:
    from altup_moe.timeline.chrome import write_trace
    from altup_moe.timeline.picture import write_picture

    directory.mkdir(parents=True, exist_ok=True)
    write_trace(directory / "trace.json", recorded)
    write_picture(directory / "step.png", recorded, title="planned step, one rank of each stage")


def _sizes(text: str) -> list[int]:
    """gpus=8..64 as [8, 16, 32, 64]."""
    low, dots, high = text.removeprefix("gpus=").partition("..")
    if not (dots and low.isdecimal() and high.isdecimal() and 0 < int(low) <= int(high)):
        raise ConfigError("sweep", text, "gpus=8..1024 would fit")
    sizes = [int(low)]
    while sizes[-1] * 2 <= int(high):
        sizes.append(sizes[-1] * 2)
    return sizes


def _measure(words: Sequence[str]) -> int:
    from altup_moe.plan.calibrate.measure_cluster import measure_cluster

    files, network = _on_netlab(words)
    text = cluster_yaml(measure_cluster(network))
    if files:
        Path(files[0]).write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _compare(words: Sequence[str]) -> int:
    from altup_moe.plan.calibrate.compare_steps import compare_steps, verdict

    files, network = _on_netlab(words)
    if len(files) != 1:
        raise UserError("compare takes one word: the cluster file that `measure FILE` wrote")
    found = []
    times = f"{'measured s':>11}{'planned s':>11}{'planned / measured':>20}{'busy s':>9}"
    print(f"{'layout':<22}{times}{'imbalance':>11}{'load before':>13}")
    for one in compare_steps(load_cluster(files[0]), network):
        found.append(one)
        times = f"{one.measured:>11.3f}{one.planned:>11.3f}{one.ratio:>20.2f}{one.busy:>9.3f}"
        print(f"{one.name:<22}{times}{one.imbalance:>11.2f}{one.load:>13.1f}", flush=True)
    print("\n".join(verdict(found)))
    return 0


def _on_netlab(words: Sequence[str]) -> tuple[list[str], Start | None]:
    """(other words, function that starts ranks as nodes of a netlab); the function is None without --netlab RATE."""
    if "--netlab" not in words:
        return list(words), None
    at = words.index("--netlab")
    rate = words[at + 1] if at + 1 < len(words) else ""

    bits_per_second(rate)  # a wrong rate is found before anything is measured

    def start(ranks: int, command: list[str]) -> int:
        return run_on_netlab(ranks, rate, command)

    return [*words[:at], *words[at + 2 :]], start


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, 1 if nothing fits, or 2 with one line on standard error."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "-h" in args or "--help" in args:
        print_help(PlanOptions, "altup-moe plan")
        return 0
    return ended("plan", lambda: _work(args))


def _work(args: list[str]) -> int:
    match args[:1]:
        case ["published"]:
            print("\n".join(published_rows([(point, planned(point)) for point in PUBLISHED_RUNS])))
            return 0
        case ["measure"]:
            return _measure(args[1:])
        case ["compare"]:
            return _compare(args[1:])
    return plan(parse(PlanOptions, args, positional="config"))
