"""`altup-moe generate RUN --prompt TEXT`: continue a text with a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.command import Command
from altup_moe.config.expected_run import check_run
from altup_moe.config.sampling import check_sampling


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt with a run's newest checkpoint."""

    run_dir: Path
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


def generate(o: GenerateOptions) -> int:
    """Check the options, then generate."""
    check_run(o.run_dir, "generate", ("--prompt", o.prompt))
    check_sampling(o.max_new_tokens, o.temperature, o.top_p, o.seed)
    from altup_moe.inference.generate import generate_command

    return generate_command(
        run_dir=o.run_dir,
        prompt=o.prompt,
        max_new_tokens=o.max_new_tokens,
        temperature=o.temperature,
        top_p=o.top_p,
        seed=o.seed,
    )


GENERATE = Command(
    "generate",
    "RUN_DIR --prompt TEXT [options]",
    ['altup-moe generate runs/quickstart --prompt "The import statement"'],
    GenerateOptions,
    generate,
    positional=["run_dir"],
    stray="a prompt is given as --prompt {word}",
)
main = GENERATE.main
