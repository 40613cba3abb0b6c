"""`altup-moe generate RUN --prompt TEXT`: continue a text with a trained run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from altup_moe.config import ConfigError
from altup_moe.config.flags import parse, print_help
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, TEMPERATURE, Range
from altup_moe.config.run_directory import check_run_directory


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt with a run's newest checkpoint."""

    run_dir: Positional[Path]
    """Directory of a run (log.run_dir)."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int = 64
    """Tokens to add at most; a line on standard error says so where fewer fit."""
    temperature: float = 0.8
    """Divides the logits, 1e-6 to 1e30; 0 always takes the likeliest token."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the draws."""


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code."""
    if "-h" in args or "--help" in args:
        print_help(GenerateOptions, "altup-moe generate")
        return 0
    return generate(args)


def generate(args: Sequence[str]) -> int:
    """Parse and check the options, then generate."""
    o = parse(GenerateOptions, args, positional="run_dir")
    check_run_directory(o.run_dir)
    COUNT.check("max_new_tokens", o.max_new_tokens)
    NOT_NEGATIVE.check("temperature", o.temperature)
    if o.temperature != 0 and o.temperature not in TEMPERATURE:
        raise ConfigError("temperature", o.temperature, f"{TEMPERATURE}; 0 takes the likeliest token")
    Range(0, 1, open_low=True).check("top_p", o.top_p)
    Range(0, 2**63 - 1).check("seed", o.seed)
    from altup_moe.inference.generate import generate_command

    return generate_command(
        run_dir=o.run_dir,
        prompt=o.prompt,
        max_new_tokens=o.max_new_tokens,
        temperature=o.temperature,
        top_p=o.top_p,
        seed=o.seed,
    )
