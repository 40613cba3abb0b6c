"""`altup-moe plan`: what a run would cost on a cluster: parameters, operations, memory, bytes on every link, time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from altup_moe.commands.plan_progress import ProgressLine
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.command import Command
from altup_moe.config.files import check_directory, try_to_write, write_text
from altup_moe.config.keys import unknown_key
from altup_moe.config.load import HINTS, load_config
from altup_moe.config.os_errors import naming
from altup_moe.config.ranges import COUNT
from altup_moe.launch.netlab import run_on_netlab
from altup_moe.launch.netplan import bits_per_second
from altup_moe.parallel.start_ranks import Start
from altup_moe.plan.cluster import Cluster, cluster_yaml, gpus_of, load_cluster
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.picture import recordings
from altup_moe.plan.published import PUBLISHED_RUNS, planned
from altup_moe.plan.report import found_dict, found_rows, plan_dict, plan_lines, published_rows
from altup_moe.plan.search import search, sweep
from altup_moe.plan.step import plan_step


@dataclass(frozen=True)
class PlanOptions:
    """What a run would cost on a cluster, computed without starting it.

    Exit code 0: it fits. 1: it does not fit the memory, or no layout fits. 2: a wrong value.
    """

    config: Path
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


@dataclass(frozen=True)
class PublishedOptions:
    """Published runs beside the figures that the planner computes for them."""


@dataclass(frozen=True)
class MeasureOptions:
    """Measure this machine, and print it as a cluster file."""

    file: Path | None = None
    """File to write it to as well."""
    netlab: str | None = None
    """Rate, as in 400mbit: each rank is a node of a simulated network of that rate (altup-moe launch netlab; needs
    root)."""


@dataclass(frozen=True)
class CompareOptions:
    """Planned and measured step times of small layouts, on two cores."""

    file: Path
    """The cluster file that `altup-moe plan measure FILE` wrote."""
    netlab: str | None = None
    """Rate, as in 400mbit: each rank is a node of a simulated network of that rate (altup-moe launch netlab; needs
    root)."""


def plan(options: PlanOptions) -> int:
    """Plan one layout, or search for layouts. Returns the exit code."""
    COUNT.check("keep", options.keep)
    if options.timeline is not None:
        check_directory("timeline", options.timeline)
    config = load_config(options.config, [f"--{word}" for word in options.set])
    cluster = load_cluster(options.cluster)
    gpus = gpus_of(cluster, options.nodes, options.gpus)
    factors = Factors(options.imbalance, options.straggler)
    if options.search or options.sweep:
        sizes = _sizes(options.sweep) if options.sweep else []
        with ProgressLine() as line:
            one = search(config, cluster, gpus, factors, options.keep, line.show) if options.search else []
            found = [*one, *sweep(config, cluster, sizes, factors, line.show)]
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
    with naming(directory):
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


def published(options: PublishedOptions) -> int:
    """Print published runs beside the model's figures."""
    print("\n".join(published_rows([(point, planned(point)) for point in PUBLISHED_RUNS])))
    return 0


def measure(options: MeasureOptions) -> int:
    """Measure this machine, and write what was found."""
    if options.file is not None:
        # Before the minutes that it takes.
        try_to_write(options.file)
    network = _on_netlab(options.netlab)
    from altup_moe.plan.calibrate.measure_cluster import measure_cluster

    text = cluster_yaml(measure_cluster(network))
    if options.file is not None:
        write_text(options.file, text)
    print(text, end="")
    return 0


def compare(options: CompareOptions) -> int:
    """Plan and measure small layouts on this machine."""
    network, cluster = _on_netlab(options.netlab), load_cluster(str(options.file))
    from altup_moe.plan.calibrate.compare_steps import compare_steps, verdict

    found = []
    times = f"{'measured s':>11}{'planned s':>11}{'planned / measured':>20}{'busy s':>9}"
    print(f"{'layout':<22}{times}{'imbalance':>11}{'load before':>13}")
    for one in compare_steps(cluster, network):
        found.append(one)
        times = f"{one.measured:>11.3f}{one.planned:>11.3f}{one.ratio:>20.2f}{one.busy:>9.3f}"
        print(f"{one.name:<22}{times}{one.imbalance:>11.2f}{one.load:>13.1f}", flush=True)
    print("\n".join(verdict(found)))
    return 0


def _on_netlab(rate: str | None) -> Start | None:
    """Function that starts ranks as nodes of a netlab; None without a rate."""
    if rate is None:
        return None
    bits_per_second(rate, "netlab")  # a wrong rate is found before anything is measured

    def start(ranks: int, command: list[str]) -> int:
        return run_on_netlab(ranks, rate, command)

    return start


PLAN = Command(
    "plan",
    "CONFIG [options]",
    [
        "altup-moe plan altup_k4_gpu --cluster h100x8 --nodes 4 --set parallel.expert=16",
        "altup-moe plan altup_k4_gpu --cluster h100x8 --nodes 2 --search",
        "altup-moe plan published",
        "altup-moe plan measure mine.yaml",
        "altup-moe plan compare mine.yaml",
    ],
    PlanOptions,
    plan,
    positional=["config"],
    more="published, measure and compare have pages of their own: altup-moe plan measure --help.",
)
PLAN_COMMANDS = {
    "published": Command("plan published", "", ["altup-moe plan published"], PublishedOptions, published),
    "measure": Command(
        "plan measure",
        "[FILE] [options]",
        ["altup-moe plan measure mine.yaml"],
        MeasureOptions,
        measure,
        positional=["file"],
    ),
    "compare": Command(
        "plan compare",
        "FILE [options]",
        ["altup-moe plan compare mine.yaml"],
        CompareOptions,
        compare,
        positional=["file"],
    ),
}


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code.

    Raises:
        UserError: a mistake of the user's.
    """
    word = args[0] if args else ""
    if word in PLAN_COMMANDS:
        return PLAN_COMMANDS[word].main(args[1:])
    meant = get_close_matches(word, PLAN_COMMANDS, 1)
    if meant and not Path(word).exists():
        raise UserError(f"plan {word}: neither a command nor a file; nearest is plan {meant[0]}")
    _check_no_keys(args)
    return PLAN.main(one_set(args))


def one_set(args: Sequence[str]) -> list[str]:
    """The words of all --set behind one: a flag that is given twice would otherwise count once."""
    others: list[str] = []
    words: list[str] = []
    into = others
    for word in args:
        if word == "--set" or word.startswith("--set="):
            into = words
            words += [word.removeprefix("--set=")] if "=" in word else []
            continue
        if word.startswith("--"):
            into = others
        into.append(word)
    return [*others, "--set", *words] if words else list(args)


def _check_no_keys(args: Sequence[str]) -> None:
    """Raise UserError for a key of the configuration that is given as a flag of its own."""
    for place, word in enumerate(args):
        key, equals, attached = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in key:
            continue
        key = key.replace("-", "_")
        given = attached if equals else " ".join(args[place + 1 : place + 2])
        if key not in HINTS:
            raise unknown_key(key, given, HINTS)
        raise UserError(f"--{key}: keys of the configuration go behind --set, as in --set {key}={given or 'VALUE'}")
