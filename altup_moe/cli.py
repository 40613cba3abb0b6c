"""`altup-moe`: train, evaluate, generate, bench.

Configurations are read and checked before torch is imported, so that a mistake is answered at once. What the user can mend is
one line on standard error and exit code 2; under a launcher rank 0 alone prints it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

from altup_moe.config.checks import CORPORA, check_config, world_size_from_env
from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.load import load_config
from altup_moe.config.schema import RunConfig, Width

Options = TypeVar("Options")


@dataclass(frozen=True)
class EvaluateOptions:
    """Loss, perplexity and bits per byte of a run's newest checkpoint."""

    run_dir: Path
    """Run directory."""
    corpus: str | None = None
    """python-docs, wikipedia-sample or the prefix of prepared data; None is the run's own validation part."""
    samples: int | None = None
    """Samples of model.seq_length tokens to read; None reads all."""
    json: bool = False
    """Print one JSON object instead of a line."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a text with a run's newest checkpoint."""

    run_dir: Path
    """Run directory."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int = 64
    """Tokens to add at most."""
    temperature: float = 0.8
    """Softmax temperature; 0 is greedy."""
    top_p: float = 0.95
    """Smallest set of tokens with this share of the probability is sampled from."""
    seed: int = 0
    """Seed of the sampling."""


@dataclass(frozen=True)
class BenchStepOptions:
    """Training-step time and peak memory of widths K against K = 1: interleaved runs, medians, ratios."""

    widths: list[Width] = field(default_factory=lambda: [1, 2, 4])
    """Widths K to compare; the first is the base of the ratios."""
    hidden_size: int = 512
    """Width d of a layer."""
    num_layers: int = 8
    """Transformer layers."""
    seq_length: int = 256
    """Tokens of a sample."""
    micro_batch_size: int = 4
    """Samples of a step."""
    moe_experts: int = 0
    """Experts of every layer; 0 is dense."""
    repeats: int = 9
    """Timed steps of each width, after two that are not counted."""
    threads: int = 2
    """CPU threads of torch."""
    json: bool = False
    """Print one JSON object instead of a table."""


def _parse(cls: type[Options], words: Sequence[str], prog: str) -> Options:
    """A command's options by tyro (errors: its message, exit code 2)."""
    import tyro

    flags = (tyro.conf.FlagConversionOff,)
    if cls in (EvaluateOptions, GenerateOptions):
        # RUN_DIR reads better as a bare word.
        words = ["--run-dir", *words] if words and not words[0].startswith("-") else list(words)
    return tyro.cli(Annotated[cls, *flags], prog=prog, args=list(words))


def _train(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        import tyro

        tyro.cli(
            Annotated[RunConfig, tyro.conf.FlagConversionOff],
            prog="altup-moe train CONFIG.yaml",
            description="Train. CONFIG.yaml sets any of the fields below; flags override it. Alone, or under torchrun.",
            args=["--help"],
        )
    config = load_config(words[0], words[1:])
    check_config(config, world_size_from_env())
    from altup_moe.train.loop import train

    return train(config)


def _existing_run(run_dir: Path) -> Path:
    if not (run_dir / "config.yaml").is_file():
        raise UserError(f"{run_dir}: is no run directory (it has no config.yaml)")
    return run_dir


def _evaluate(words: Sequence[str]) -> int:
    options = _parse(EvaluateOptions, words, "altup-moe evaluate RUN_DIR")
    if options.samples is not None and options.samples < 1:
        raise ConfigError("samples", options.samples, "must be 1 or more")
    if options.corpus and options.corpus not in CORPORA and not Path(options.corpus + ".idx").is_file():
        raise ConfigError("corpus", options.corpus, f"must be one of {', '.join(CORPORA)}, or the prefix of prepared data")
    _existing_run(options.run_dir)
    from altup_moe.train.evaluate import evaluate_command

    return evaluate_command(options.run_dir, options.corpus, options.samples, options.json)


def _generate(words: Sequence[str]) -> int:
    options = _parse(GenerateOptions, words, "altup-moe generate RUN_DIR")
    if options.temperature < 0:
        raise ConfigError("temperature", options.temperature, "must be 0 (greedy) or more")
    if not 0 < options.top_p <= 1:
        raise ConfigError("top_p", options.top_p, "must be greater than 0 and at most 1")
    if options.max_new_tokens < 1:
        raise ConfigError("max_new_tokens", options.max_new_tokens, "must be 1 or more")
    _existing_run(options.run_dir)
    from altup_moe.train.generate import generate_command

    return generate_command(
        options.run_dir, options.prompt, options.max_new_tokens, options.temperature, options.top_p, options.seed
    )


def _bench(words: Sequence[str]) -> int:
    if not words or words[0] != "step":
        raise UserError(f"bench {' '.join(words[:1])}: must be one of: step (altup-moe bench step --help)")
    options = _parse(BenchStepOptions, words[1:], "altup-moe bench step")
    from altup_moe.study.bench_step import bench_step

    return bench_step(options)


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (_train, "train CONFIG.yaml [--section.key value ...]; alone or under torchrun"),
    "evaluate": (_evaluate, "evaluate RUN_DIR: loss, perplexity and bits per byte on any corpus"),
    "generate": (_generate, "generate RUN_DIR --prompt TEXT: continue a text"),
    "bench": (_bench, "bench step: cost of the wide stream, measured"),
}


def _usage() -> str:
    lines = [f"  altup-moe {text}" for _, text in COMMANDS.values()]
    return "\n".join(["usage: altup-moe COMMAND ...", *lines, "  altup-moe COMMAND --help: its options", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit code; 2 for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("altup-moe"))
        return 0
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"{words[0]!r} is no command; commands are {', '.join(COMMANDS)}")
        return COMMANDS[words[0]][0](words[1:])
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"altup-moe: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
