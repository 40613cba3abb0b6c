"""`altup-moe train CONFIG`: load and check a configuration, then train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from altup_moe.commands.run_file import check_run_file, new_weights_note
from altup_moe.config import RunConfig, UserError
from altup_moe.config.checks import check_config, world_size_from_env
from altup_moe.config.expected_run import check_initial_load
from altup_moe.config.help_pages import help_topic
from altup_moe.config.imports import without_collections
from altup_moe.config.load import load_config, split_overrides
from altup_moe.config.section_pages import run_page, topic_page
from altup_moe.config.start_clock import mark
from altup_moe.parallel.compile_later import compile_later
from altup_moe.parallel.machine import device_name, memory_bytes
from altup_moe.plan.fits import check_fits
from altup_moe.train.stop_signal import WARNING, StopSignal

EXAMPLES = (
    "altup-moe train quickstart",
    "altup-moe launch torchrun --ranks-per-node 2 -- altup-moe train quickstart --train.steps 500",
)
PROFILE = "--log.profile_steps=3"
"""What --profile stands for."""
USUAL = (
    "data.corpus",
    "altup.width",
    "optim.learning_rate",
    "train.steps",
    "parallel.tensor",
)
"""Keys that the first page of help shows."""


@dataclass(frozen=True)
class TrainOptions:
    """Train a configuration file; any of its keys can be given as a flag. The same command goes on where it stopped."""

    profile: bool = False
    """Record three steps (log.profile_steps)."""
    dry_run: bool = False
    """Say what the run would do: layout, memory, step time, data, resume. Nothing is started or written."""
    full: bool = False
    """With --dry-run: every key of the configuration."""
    json: bool = False
    """With --dry-run: one JSON object."""
    cluster: str | None = None
    """With --dry-run: kind of node for the step time. Or a file that `altup-moe plan measure` wrote."""
    ranks: int | None = None
    """With --dry-run: ranks to look at. None is as few as the layout can run on."""


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code.

    Raises:
        UserError: a mistake of the user's.
    """
    mark("process, interpreter")
    topic = help_topic(args)
    if topic is not None:
        print("\n".join(_page(topic, args)))
        return 0
    if not args or not args[0] or args[0].startswith("-"):
        raise UserError(f"train: name a configuration file first, as in {EXAMPLES[0]}")
    (file,), options, overrides = split_overrides(TrainOptions, args, positionals=1)
    overrides = [*([PROFILE] if options.profile else []), *overrides]
    if options.dry_run:
        from altup_moe.commands.dry_run import DryRunOptions, dry_run

        return dry_run(file, overrides, DryRunOptions(options.full, options.json, options.cluster, options.ranks))
    for name in ("full", "json", "cluster", "ranks"):
        if getattr(options, name):
            raise UserError(f"--{name}: is of use with --dry-run alone; add --dry-run")
    # A warning of SLURM that comes before the first step is heeded after it; it must not end the process.
    with StopSignal((WARNING,)):
        config = load_config(file, overrides)
        check_run_file(file, config, overrides)
        check_config(config, world_size_from_env())
        check_initial_load(config, file)
        note = new_weights_note(file, config)
        if note and os.environ.get("RANK", "0") == "0":
            print(note, flush=True)
        with without_collections(), compile_later():
            from altup_moe.train import loop

        mark("imports")
        check_memory(config)
        return loop.train(config)


def check_memory(config: RunConfig) -> None:
    """Raise UserError for a run that this machine, or a GPU of it, cannot hold."""
    memory = memory_bytes()
    if memory is None:
        return
    here = 1 if device_name() != "cpu" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    size = world_size_from_env()
    check_fits(config, size, min(int(os.environ.get("RANK", "0")), size - 1), here, memory)


def _page(topic: str, args: Sequence[str]) -> list[str]:
    """The page of help; defaults are the file's where one is named first."""
    named = bool(args) and not args[0].startswith("-")
    config = load_config(args[0]) if named else RunConfig()
    if topic:
        return topic_page("altup-moe train", topic, config)
    usage = "CONFIG [--section.key VALUE ...]"
    return run_page("altup-moe train", usage, EXAMPLES, TrainOptions, config, USUAL)
