"""`altup-moe grow SRC DST`: make a trained model larger without changing what it computes, and train on from there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from altup_moe.checkpoint.grow.options import GrowOptions
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.expected_run import check_source
from altup_moe.config.flags import parse
from altup_moe.config.help_pages import heading, help_topic, one_option, option_lines, options_of, table
from altup_moe.config.load import split_overrides
from altup_moe.config.section_pages import topic_page

EXAMPLES = (
    "altup-moe grow runs/dense runs/wide --altup.width 4 --train.steps 400",
    "altup-moe grow runs/dense runs/moe --moe.num_experts 8 --moe.ffn_hidden_size 512 --train.steps 400",
)
GROWS = (
    ("altup.width", "a multiple of the source's; altup.variant, select and recycled too if that is 1"),
    (
        "moe.num_experts",
        "of a dense model: copies of its feed-forward (moe.ffn_hidden_size must be model.ffn_hidden_size); else a "
        "multiple m of the source's, with moe.top_k m times as large",
    ),
    ("moe.layer_freq", "a divisor of the source's"),
    ("moe.shared_expert_size", "of a source that has no shared expert"),
    ("moe.partial", "of a dense model: its feed-forwards stay; experts that add nothing yet are put beside them"),
    ("model.num_layers", "layers are added after the last"),
)
"""Keys that may grow, and how."""


def main(args: Sequence[str]) -> int:
    """Run the command's words. Returns 0; 1 if the check fails.

    Raises:
        UserError: a mistake of the user's.
    """
    topic = help_topic(args)
    if topic is not None:
        print("\n".join(_page(topic)))
        return 0
    src, dst, overrides, options = _checked(args)
    from altup_moe.inference.grow import Differs, grow_run  # torch

    try:
        grow_run(src, dst, overrides, options)
    except Differs as error:
        print(f"altup-moe: error: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        if error.key not in {field.name for field in fields(GrowOptions)}:
            raise
        raise ConfigError(f"--{error.key.replace('_', '-')}", error.value, error.fits) from None
    return 0


def _checked(args: Sequence[str]) -> tuple[Path, Path, list[str], GrowOptions]:
    """What can be said without reading the source."""
    found, options, overrides = split_overrides(GrowOptions, args, positionals=2)
    if len(found) < 2 or not all(found):
        raise UserError(f"name a run or checkpoint to grow and a directory to make, as in {EXAMPLES[0]}")
    src, dst = map(Path, found)
    if dst.exists() or dst.is_symlink():
        raise UserError(f"{dst}: exists already; name a directory to be made")
    changed = parse(RunConfig, overrides, default=RunConfig())
    if changed.log.run_dir != RunConfig().log.run_dir:
        raise ConfigError("log.run_dir", changed.log.run_dir, "the second word, DST, says it")
    check_source(src, "grow", (str(dst), *overrides), "SRC")
    return src, dst, overrides, options


def _page(topic: str) -> list[str]:
    if topic and topic.lstrip("-").replace("-", "_") not in {field.name for field in fields(GrowOptions)}:
        return topic_page("altup-moe grow", topic, RunConfig())
    if topic:
        return one_option(options_of(GrowOptions), topic, "altup-moe grow")
    return [
        *heading("altup-moe grow SRC DST [--section.key VALUE ...]", EXAMPLES, GrowOptions.__doc__ or ""),
        "",
        *table([("SRC", "Run directory (its newest checkpoint) or checkpoint."), ("DST", "Run directory to make.")]),
        "",
        *option_lines(options_of(GrowOptions)),
        "",
        "Keys that grow, all in one call if you like (altup-moe grow --help SECTION lists a section):",
        *table(GROWS),
        "",
        "Keys of parallel, overlap, optim, train, checkpoint and log may be given as well (train.steps above all).",
    ]
