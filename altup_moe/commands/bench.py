"""The benchmarks as commands: which options each takes, what of them must fit, and the module that measures.

Everything here is read and checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from altup_moe.bench.gpu.options import GpuBench
from altup_moe.bench.options import (
    CheckpointBench,
    CoordinatesBench,
    ExpertsBench,
    FaultsBench,
    MixingBench,
    OverlapBench,
    ScalingBench,
    SequenceBench,
    StepBench,
    TrainBench,
    WatchdogBench,
)
from altup_moe.commands.gpu_planner import PLANNER
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import world_size_from_env
from altup_moe.config.command import Command, Group
from altup_moe.config.files import check_directory
from altup_moe.config.imports import without_collections
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, POSITIVE, Range


def _bench(
    name: str,
    options: type,
    example: str,
    counts: str,
    check: Callable[[Any], None],
    on_ranks: bool = False,
    **parts: Any,
) -> Command:
    """A benchmark. Its module `bench_NAME` has a function of the same name.

    Args:
        example: options of the example.
        counts: options, or all values of an option, that must be 1 or more.
        check: what else must fit. on_ranks: the function also takes how many ranks the launcher started.
        parts: functions that it takes beside, of packages that bench does not know.
    """

    def run(o: Any) -> int:
        for key in counts.split():
            value = getattr(o, key)
            for one in value if isinstance(value, tuple) else (value,):
                COUNT.check(key, one)
        check(o)
        with without_collections():
            module = import_module(f"altup_moe.bench.bench_{name}")
        function = getattr(module, f"bench_{name}")
        code: int = function(o, world_size_from_env(), **parts) if on_ranks else function(o, **parts)
        return code

    return Command(f"bench {name}", "[options]", [f"altup-moe bench {name} {example}"], options, run)


def _step(o: StepBench) -> None:
    NOT_NEGATIVE.check("moe_experts", o.moe_experts)


def _sequence(o: SequenceBench) -> None:
    NOT_NEGATIVE.check("moe_experts", o.moe_experts)
    Range(2).check("stride", o.stride)


def _overlap(o: OverlapBench) -> None:
    if o.micro_batch_size % 2:
        raise ConfigError("micro_batch_size", o.micro_batch_size, "must be even: halves of a micro-batch are compared")


def _experts(o: ExpertsBench) -> None:
    Range(2, o.hidden_size).check("moe_experts", o.moe_experts)


def _train(o: TrainBench) -> None:
    Range(2).check("moe_experts", o.moe_experts)


def _mixing(o: MixingBench) -> None:
    for exponent in o.exponents:
        Range(10, 30).check("exponents", exponent)
    if 2 ** min(o.exponents, default=10) % o.hidden_size:
        raise ConfigError("hidden_size", o.hidden_size, "must be a power of two, at most the numbers of a block")


def _checkpoint(o: CheckpointBench) -> None:
    if o.directory is not None and not Path(o.directory).is_dir():
        raise ConfigError("directory", o.directory, "is no directory")


def _faults(o: FaultsBench) -> None:
    from altup_moe.bench.faults.available import left_out
    from altup_moe.launch.netlab import unavailable

    for key in ("minutes", "every", "hang_timeout"):
        POSITIVE.check(key, getattr(o, key))
    Range(2, 4).check("ranks", o.ranks)
    if o.memory_interval is not None:
        COUNT.check("memory_interval", o.memory_interval)
    if o.every > 60 * o.minutes:
        raise ConfigError("every", o.every, f"is longer than all of --minutes; at most {60 * o.minutes:g} would fit")
    if o.nodes and (reason := unavailable()):
        raise ConfigError("nodes", True, reason)
    unable = left_out(o.nodes)
    for kind in o.kinds:
        if kind in unable:
            raise ConfigError("kinds", kind, unable[kind])
    if o.directory is not None and (Path(o.directory).exists() or not Path(o.directory).absolute().parent.is_dir()):
        raise ConfigError("directory", o.directory, "must be a new directory in one that exists")


def _scaling(o: ScalingBench) -> None:
    from altup_moe.launch.netlab import unavailable

    COUNT.check("moe_experts", o.moe_experts)
    if o.launcher == "netlab" and (reason := unavailable()):
        raise ConfigError("launcher", o.launcher, reason)
    if o.rate is not None and o.launcher != "netlab":
        raise ConfigError("rate", o.rate, "is launcher netlab's")
    if o.report and o.directory is None:
        raise ConfigError("directory", None, "--report needs the directory that was measured into")
    if o.picture is not None and Path(o.picture).suffix not in (".png", ".svg"):
        raise ConfigError("picture", o.picture, "a file that ends with .png or .svg would fit")
    if not o.ranks or sorted(set(o.ranks)) != list(o.ranks):
        raise ConfigError("ranks", list(o.ranks), "the same in ascending order, each once, would fit")
    if o.cluster is not None:
        from altup_moe.plan.cluster import load_cluster

        load_cluster(o.cluster)


def _coordinates(o: CoordinatesBench) -> None:
    NOT_NEGATIVE.check("moe_experts", o.moe_experts)
    POSITIVE.check("learning_rate", o.learning_rate)
    if len(o.hidden_sizes) < 2 or sorted(set(o.hidden_sizes)) != list(o.hidden_sizes):
        raise ConfigError("hidden_sizes", list(o.hidden_sizes), "two or more in ascending order, each once, would fit")
    for size in o.hidden_sizes:
        if size % o.head_size:
            raise ConfigError("hidden_sizes", size, f"a multiple of --head-size ({o.head_size}) would fit")
    if not o.parametrizations:
        raise ConfigError("parametrizations", [], "standard, mup or both would fit")
    if o.out is not None and not Path(o.out).absolute().parent.is_dir():
        raise ConfigError("out", o.out, "a file in a directory that exists would fit")


def _gpu(o: GpuBench) -> None:
    POSITIVE.check("minutes", o.minutes)
    check_directory("directory", Path(o.directory))


def _planned_seconds(config: RunConfig, cluster: str, ranks: int) -> float:
    from altup_moe.plan.cluster import load_cluster
    from altup_moe.plan.step import plan_step

    return plan_step(config, load_cluster(cluster), ranks).seconds


_SHAPE = "hidden_size num_layers seq_length micro_batch_size repeats threads"

BENCHES = {
    "step": _bench("step", StepBench, "--widths 1 2 4 --hidden-size 512", _SHAPE, _step),
    "sequence": _bench("sequence", SequenceBench, "--stride 4 --hidden-size 256", _SHAPE, _sequence),
    "overlap": _bench("overlap", OverlapBench, "--widths 1 4 --json", f"{_SHAPE} moe_experts", _overlap, on_ranks=True),
    "experts": _bench(
        "experts",
        ExpertsBench,
        "--hidden-size 512 --tokens 4096",
        "hidden_size ffn_hidden_size tokens repeats threads",
        _experts,
        on_ranks=True,
    ),
    "train": _bench("train", TrainBench, "--hidden-size 256", f"{_SHAPE} ffn_hidden_size vocab_size", _train),
    "mixing": _bench("mixing", MixingBench, "--widths 2 4 --no-rivals", "hidden_size repeats threads", _mixing),
    "checkpoint": _bench("checkpoint", CheckpointBench, "--megabytes 64", "megabytes repeats threads", _checkpoint),
    "watchdog": _bench(
        "watchdog", WatchdogBench, "--hidden-size 256 --repeats 31", f"{_SHAPE} moe_experts", _step, on_ranks=True
    ),
    "scaling": _bench(
        "scaling",
        ScalingBench,
        "--ranks 1 2 4",
        "hidden_size num_layers seq_length samples repeats rounds recorded threads ranks",
        _scaling,
        on_ranks=True,
        planner=_planned_seconds,
    ),
    "coordinates": _bench(
        "coordinates",
        CoordinatesBench,
        "--hidden-sizes 64 128 256 --width 4",
        "hidden_sizes num_layers head_size steps seeds seq_length micro_batch_size threads",
        _coordinates,
    ),
    "gpu": _bench("gpu", GpuBench, "--minutes 40", "", _gpu, planner=PLANNER),
    "faults": _bench("faults", FaultsBench, "--minutes 5 --every 60 --ranks 2", "save_interval", _faults),
}
"""By name."""

BENCH = Group(
    "bench",
    """Measure: every figure beside the one that it is compared with, in interleaved turns. `overlap` and `experts` also
    run on ranks: altup-moe launch torchrun --ranks-per-node 2 -- altup-moe bench overlap.""",
    BENCHES,
)
main = BENCH.main
