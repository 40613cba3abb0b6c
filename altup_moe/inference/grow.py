"""Grow a trained model: a larger one with the same logits, which are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from altup_moe.checkpoint.grow.checkpoint import Grown, grow_checkpoint
from altup_moe.checkpoint.grow.checks import check_growth
from altup_moe.checkpoint.grow.options import GrowOptions
from altup_moe.checkpoint.grow.rules import Growth, equal_copies_notes
from altup_moe.checkpoint.sidecar_files import copy_sidecar_files
from altup_moe.checkpoint.source import HALF_DTYPES, Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import ModelConfig, RunConfig
from altup_moe.config.flags import parse
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import checkpoints_dir, config_file
from altup_moe.data.files import new_directory
from altup_moe.inference.logits import logits_of, model_of

LOGIT_TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, that fp32 rounding explains."""
ROUNDED_LOGIT_TOLERANCE = 0.05
"""The same where half-precision weights were multiplied by what is no power of two."""


class Differs(Exception):
    """The grown model's logits differ from the source's, though the growth is exact."""


def grow_run(src: Path, dst: Path, overrides: Sequence[str], options: GrowOptions) -> None:
    """Grow a run's or directory's checkpoint and say what was done; after any failure DST does not exist.

    Args:
        src: run directory (its newest checkpoint), or a checkpoint's.
        dst: run directory to make.
        overrides: words of a command line that change keys of the source's configuration.
    Raises:
        UserError: it cannot be grown so; nothing was written.
        Differs: the logits differ though they should not.
    """
    with Checkpoint(find_checkpoint(src)) as source:
        target = parse(RunConfig, overrides, default=source.config)
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
    print(go_on(dst, manifest.step, growth.target.train.steps))


def go_on(dst: str, step: int, steps: int) -> str:
    """The line that says how to train on; a run whose steps are done needs more of them."""
    if step < steps:
        return f"go on: altup-moe train {dst}/config.yaml (to step {steps})"
    return f"all {steps} steps are done; go on: altup-moe train {dst}/config.yaml --train.steps {2 * step}"
