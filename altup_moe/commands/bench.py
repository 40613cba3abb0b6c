"""The benchmarks as commands: which options each takes, what of them must fit, and the module that measures.

Everything here is read and checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from altup_moe.bench.options import (
    CheckpointBench,
    ExpertsBench,
    MixingBench,
    OverlapBench,
    SequenceBench,
    StepBench,
    TrainBench,
)
from altup_moe.config import ConfigError, UserError
from altup_moe.config.checks import world_size_from_env
from altup_moe.config.flags import parse, print_help
from altup_moe.config.keys import nearest_key
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, Range


@dataclass(frozen=True)
class Bench:
    """A benchmark: its options, a one-line summary, and the function that runs parsed words."""

    options: type
    summary: str
    run: Callable[[Sequence[str]], int]


def _bench(
    name: str, options: type, summary: str, counts: str, check: Callable[[Any], None], on_ranks: bool = False
) -> Bench:
    """A benchmark. Its module `bench_NAME` has a function of the same name.

    Args:
        counts: options, or all values of an option, that must be 1 or more.
        check: what else must fit. on_ranks: the function also takes how many ranks the launcher started.
    """

    def run(args: Sequence[str]) -> int:
        o: Any = parse(options, args)
        for key in counts.split():
            value = getattr(o, key)
            for one in value if isinstance(value, tuple) else (value,):
                COUNT.check(key, one)
        check(o)
        function = getattr(import_module(f"altup_moe.bench.bench_{name}"), f"bench_{name}")
        code: int = function(o, world_size_from_env()) if on_ranks else function(o)
        return code

    return Bench(options, summary, run)


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


_SHAPE = "hidden_size num_layers seq_length micro_batch_size repeats threads"

BENCHES = {
    "step": _bench("step", StepBench, "time a training step for several stream widths", _SHAPE, _step),
    "sequence": _bench(
        "sequence",
        SequenceBench,
        "time a training step of strided layers (Sequence-AltUp and its baselines) against the plain model",
        _SHAPE,
        _sequence,
    ),
    "overlap": _bench(
        "overlap",
        OverlapBench,
        "what hides under the experts' all-to-all, in every mode (start it with torchrun or launch/netlab)",
        f"{_SHAPE} moe_experts",
        _overlap,
        on_ranks=True,
    ),
    "experts": _bench(
        "experts",
        ExpertsBench,
        "time a sparse feed-forward under every backend against a dense one and others (torchrun: experts over ranks)",
        "hidden_size ffn_hidden_size tokens repeats threads",
        _experts,
        on_ranks=True,
    ),
    "train": _bench(
        "train",
        TrainBench,
        "time a training step against transformers' Mixtral in a plain PyTorch loop",
        f"{_SHAPE} ffn_hidden_size vocab_size",
        _train,
    ),
    "mixing": _bench(
        "mixing",
        MixingBench,
        "time the pass over the wide stream against a copy and others",
        "hidden_size repeats threads",
        _mixing,
    ),
    "checkpoint": _bench(
        "checkpoint",
        CheckpointBench,
        "time saving and loading against plain safetensors",
        "megabytes repeats threads",
        _checkpoint,
    ),
}
"""By name."""


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code."""
    name, *rest = args or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, BENCHES))
        print("\n".join(f"  altup-moe bench {name:<{width}} [options]  {b.summary}" for name, b in BENCHES.items()))
        return 0 if args else 2
    if name not in BENCHES:
        raise UserError(f"bench {name}: unknown command; nearest is bench {nearest_key(name, BENCHES)}")
    if "-h" in rest or "--help" in rest:
        print_help(BENCHES[name].options, f"altup-moe bench {name}")
        return 0
    return BENCHES[name].run(rest)
