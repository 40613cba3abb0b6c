"""`altup-moe train CONFIG`: load and check a configuration, then train."""

from __future__ import annotations

from collections.abc import Sequence

from altup_moe.config import RunConfig, UserError
from altup_moe.config.checks import check_config, world_size_from_env
from altup_moe.config.flags import print_help
from altup_moe.config.load import load_config
from altup_moe.train.stop_signal import WARNING, StopSignal

PROFILE = ["--log.profile_steps", "3"]
"""What --profile stands for."""


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code."""
    if "-h" in args or "--help" in args:
        train_help(args)
        return 0
    return train(args)


def train(args: Sequence[str]) -> int:
    """Load and check a configuration file with its overrides, then train."""
    if not args or args[0].startswith("-"):
        raise UserError("train: name a configuration file first, as in altup-moe train configs/quickstart.yaml")
    if any(arg.replace("_", "-") == "--dry-run" for arg in args):
        from altup_moe.commands.dry_run import dry_run

        return dry_run(args[0], args[1:])
    # The one flag without a dot: what people look for.
    overrides = [part for arg in args[1:] for part in (PROFILE if arg == "--profile" else [arg])]
    # A warning of SLURM that comes before the first step is heeded after it; it must not end the process.
    with StopSignal((WARNING,)):
        config = load_config(args[0], overrides)
        check_config(config, world_size_from_env())
        from altup_moe.train import loop

        return loop.train(config)


def train_help(args: Sequence[str]) -> None:
    """Every field of a run; defaults are the file's where one is named."""
    named = bool(args) and not args[0].startswith("-")
    print_help(RunConfig, "altup-moe train CONFIG", load_config(args[0] if named else None))
