"""Import models from Hugging Face directories, and export runs to them.

    altup-moe convert import HF_DIR RUN_DIR     llama, mistral, qwen3, mixtral, qwen3_moe, t5 -> a run, K = 1
    altup-moe convert export RUN_DIR HF_DIR     any run or checkpoint -> AutoModelForCausalLM's directory

Weights go through a tensor at a time; pickles and code that a model brings along are never loaded. Afterwards the
logits of both sides are compared in fp32 (--no-check leaves that out: it needs one whole model in memory).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from altup_moe.config import ConfigError
from altup_moe.config.command import ended
from altup_moe.config.flags import check_utf8


@dataclass(frozen=True)
class Import:
    """A local Hugging Face directory becomes a run directory with a checkpoint 0."""

    source: tyro.conf.Positional[Path]
    """Directory with config.json, safetensors and a tokenizer."""
    run_dir: tyro.conf.Positional[Path]
    """Directory to make."""
    seq_length: int | None = None
    """Tokens of a sample; None is what the model was made for, at most 4096."""
    precision: Literal["fp32", "bf16"] | None = None
    """Dtype of the weights; None loses nothing (bf16 if all of the source is, else fp32)."""
    check: bool = True
    """Compare logits with transformers' model."""


@dataclass(frozen=True)
class Export:
    """A run or checkpoint of ours becomes a Hugging Face directory."""

    source: tyro.conf.Positional[Path]
    """Run directory (its latest checkpoint) or a checkpoint's directory."""
    out: tyro.conf.Positional[Path]
    """Directory to make."""
    plain: bool = False
    """Write a Llama, Mistral, Qwen3, Mixtral, Qwen3-MoE or T5 model (K = 1 only) instead of our own class."""
    check: bool = True
    """Load the result with transformers and compare logits."""


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns 0; 1 if the logits differ; 2 with one line on standard error for what the user can mend."""
    commands = Annotated[Import, tyro.conf.subcommand("import")] | Annotated[Export, tyro.conf.subcommand("export")]
    options: Import | Export = tyro.cli(commands, args=argv, description=__doc__)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from altup_moe.inference.hub import (  # torch: after the command line is understood
        CheckFailed,
        export_run,
        import_run,
    )

    target = options.run_dir if isinstance(options, Import) else options.out

    def work() -> int:
        check_utf8(sys.argv[1:] if argv is None else argv)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            key = "run_dir" if isinstance(options, Import) else "out"
            raise ConfigError(key, str(target), "exists and is not empty")
        try:
            if isinstance(options, Import):
                lines = import_run(options.source, target, options.seq_length, options.precision, options.check)
            else:
                lines = export_run(options.source, target, options.plain, options.check)
        except CheckFailed as error:
            print(f"convert: check failed: {error}; nothing was written", file=sys.stderr)
            return 1
        print("\n".join(lines))
        return 0

    return ended("convert", work)
