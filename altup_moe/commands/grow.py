"""Make a trained model larger without changing what it computes, and train on from there.

    altup-moe grow SRC DST [--altup.width 4] [--moe.num_experts 8 ...] [--model.num_layers 12] [options]

SRC is a run directory (its newest checkpoint) or a checkpoint; DST a run directory to be made, from which `altup-moe
train DST/config.yaml` goes on. Keys are the trainer's; these grow, all in one call if you like:

  altup.width         a multiple of the source's; altup.variant, select and recycled too if that is 1
  moe.num_experts     of a dense model: copies of its feed-forward (moe.ffn_hidden_size must be model.ffn_hidden_size);
                      else a multiple m of the source's, with moe.top_k m times as large
  moe.layer_freq      a divisor of the source's
  moe.shared_expert_size   of a source that has no shared expert
  moe.partial         of a dense model: its feed-forwards stay, and experts that add nothing yet are put beside them
  model.num_layers    layers are added after the last

Keys of parallel, overlap, optim, train, checkpoint and log may be given as well (train.steps above all).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from altup_moe.checkpoint.grow.checkpoint import Grown, grow_checkpoint
from altup_moe.checkpoint.grow.checks import check_growth
from altup_moe.checkpoint.grow.rules import Growth, equal_copies_notes
from altup_moe.checkpoint.sidecar_files import copy_sidecar_files
from altup_moe.checkpoint.source import HALF_DTYPES, Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import ConfigError, ModelConfig, RunConfig, UserError
from altup_moe.config.command import ended
from altup_moe.config.flags import Flag, parse, print_help, read_flags
from altup_moe.config.keys import field_hints
from altup_moe.config.load import HINTS, save_config
from altup_moe.config.run_directory import checkpoints_dir, config_file
from altup_moe.data.files import new_directory
from altup_moe.inference.logits import logits_of, model_of

LOGIT_TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, that fp32 rounding explains."""
ROUNDED_LOGIT_TOLERANCE = 0.05
"""The same where half-precision weights were multiplied by what is no power of two."""


@dataclass(frozen=True)
class GrowOptions:
    """Make a trained model larger without changing what it computes."""

    split_experts: bool = False
    """More experts are parts of the source's, cut along moe.ffn_hidden_size: as many parameters and FLOPs as before."""
    expert_noise: float = 0.0
    """Noise on copied experts, as a share of a tensor's standard deviation (the first copy has none); 0 is exact.
    Copies of an expert are chosen together and stay equal without it; those of a dense layer come apart by routing."""
    coefficient_noise: float = 0.0
    """Standard deviation of noise on the AltUp coefficients of a wider stream; 0 is exact. Copies of a block come
    apart in training if a layer computes on one; the others (altup.select same, few layers) stay equal without it."""
    seed: int | None = None
    """Seed of new weights and noise; None is train.seed."""
    check: bool = True
    """Compare the logits of both models (both must fit into memory, one after the other)."""


class Differs(Exception):
    """The grown model's logits differ from the source's, though the growth is exact."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0; 1 if the check fails; 2 with one line on standard error for what the user can mend."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "-h" in args or "--help" in args:
        print(__doc__)
        print_help(GrowOptions, "grow.py SRC DST [--SECTION.KEY VALUE ...]")
        return 0

    def work() -> int:
        try:
            run_grow(args)
        except Differs as error:
            print(f"grow: error: {error}", file=sys.stderr)
            return 1
        return 0

    return ended("grow", work)


def run_grow(args: Sequence[str]) -> None:
    """Grow a checkpoint. Raises UserError before anything is written; after any failure DST does not exist."""
    own_hints = field_hints(GrowOptions)
    found, flags = read_flags(args, {**HINTS, **own_hints}, positionals=2)
    if len(found) < 2:
        raise UserError("name a run or checkpoint to grow and a directory to make: grow.py SRC DST [options]")
    src, dst = map(Path, found)
    options = parse(GrowOptions, _words(flags, own_hints))
    if dst.exists() or dst.is_symlink():
        raise UserError(f"{dst}: exists already; name a directory to be made")
    if "log.run_dir" in flags:
        raise ConfigError("log.run_dir", flags["log.run_dir"].words[0], "the second word, DST, says it")
    with Checkpoint(find_checkpoint(src)) as source:
        target = parse(RunConfig, _words(flags, HINTS), default=source.config)
        target = replace(target, log=replace(target.log, run_dir=str(dst)))
        growth = Growth(
            source.config,
            target,
            target.train.seed if options.seed is None else options.seed,
            options.split_experts,
            options.expert_noise,
            options.coefficient_noise,
        )
        check_growth(growth)
        source.verify()
        with new_directory(dst) as made:
            grown = grow_checkpoint(source, growth, checkpoints_dir(made))
            difference = (
                logit_difference(source.directory, grown.directory, source.config.model) if options.check else None
            )
            if difference is not None and growth.exact and not difference <= logit_tolerance(source, growth):
                raise Differs(
                    f"logits differ by {difference:.1e} of the largest, though they should not; nothing is kept"
                )
            save_config(target, config_file(made))
            copy_sidecar_files(source.directory, source.manifest.step, made)
    _say(source, growth, grown, difference)


def logit_tolerance(source: Checkpoint, growth: Growth) -> float:
    """Largest relative difference of logits that rounding explains in an exact growth."""
    half = source.manifest.tensors["weights/model.embed_tokens.weight"].dtype in HALF_DTYPES
    m = growth.expert_times
    return ROUNDED_LOGIT_TOLERANCE if half and growth.split_experts and m & (m - 1) else LOGIT_TOLERANCE


def logit_difference(source: Path, grown: Path, model: ModelConfig) -> float:
    """Largest difference between both checkpoints' logits, relative to the source's largest."""
    before, after = (logits_of(partial(model_of, directory), model) for directory in (source, grown))
    return float((after - before).abs().max() / before.abs().max())


def _words(flags: dict[str, Flag], keys: dict[str, object]) -> list[str]:
    return [f"--{flag.key}={flag.words[0]}" for flag in flags.values() if flag.key in keys]


def _say(source: Checkpoint, growth: Growth, grown: Grown, difference: float | None) -> None:
    manifest, dst = source.manifest, growth.target.log.run_dir
    print(f"{source.directory} (step {manifest.step}) -> {dst}")
    if difference is not None:
        promise = "" if growth.exact else " (noise was asked for)"
        print(f"logits: largest difference {difference:.1e} of the largest logit{promise}")
    if manifest.has_optimizer:
        print(f"optimizer state: carried for {grown.carried} tensors")
    for why, count in grown.reset.items():
        print(f"optimizer state: starts from zero for {count} tensors: {why}")
    for line in equal_copies_notes(growth):
        print(f"note: {line}")
    print(f"go on: altup-moe train {dst}/config.yaml (to step {growth.target.train.steps})")
