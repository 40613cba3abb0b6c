"""`altup-moe convert import|export`: models from Hugging Face directories, and runs to them.

Weights go through a tensor at a time; pickles and code that a model brings along are never loaded. Afterwards the
logits of both sides are compared in fp32 (--no-check leaves that out: it needs one whole model in memory).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from altup_moe.config import ConfigError, DataError, UserError
from altup_moe.config.command import Command, Group
from altup_moe.config.expected_run import check_source
from altup_moe.config.hub_directory import model_type


@dataclass(frozen=True)
class ImportOptions:
    """A local Hugging Face directory (llama, mistral, qwen3, mixtral, qwen3_moe, t5) becomes a run with K = 1.

    Exit code 0; 1 if the logits differ, and nothing is kept.
    """

    source: Path
    """Directory with config.json, safetensors and a tokenizer."""
    run_dir: Path
    """Directory to make; its checkpoint is of step 0."""
    seq_length: int | None = None
    """Tokens of a sample; None is what the model was made for, at most 4096."""
    precision: Literal["fp32", "bf16"] | None = None
    """Dtype of the weights; None loses nothing (bf16 if all of the source is, else fp32)."""
    check: bool = True
    """Compare logits with transformers' model."""


@dataclass(frozen=True)
class ExportOptions:
    """A run or checkpoint of ours becomes a Hugging Face directory.

    Exit code 0; 1 if the logits differ, and nothing is kept.
    """

    source: Path
    """Run directory (its latest checkpoint) or a checkpoint's directory."""
    out: Path
    """Directory to make."""
    plain: bool = False
    """Write a Llama, Mistral, Qwen3, Mixtral, Qwen3-MoE or T5 model (K = 1 only) instead of our own class."""
    check: bool = True
    """Load the result with transformers and compare logits."""


def import_model(o: ImportOptions) -> int:
    """Make a run of a model. Returns the exit code."""
    config = o.source / "config.json"
    if not config.is_file():
        raise DataError(config, "is missing; a directory with config.json, safetensors and a tokenizer would fit")
    _check_target("run_dir", o.run_dir)
    from altup_moe.inference.hub import import_run  # torch: after the command line is understood

    return _checked(lambda: import_run(o.source, o.run_dir, o.seq_length, o.precision, o.check))


def export_model(o: ExportOptions) -> int:
    """Make a Hugging Face directory of a run. Returns the exit code."""
    check_source(o.source, "convert export", (str(o.out),), "source")
    _check_target("out", o.out)
    from altup_moe.inference.hub import export_run

    return _checked(lambda: export_run(o.source, o.out, o.plain, o.check))


def _check_target(key: str, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(key, str(target), "exists and is not empty; name another directory, or remove this one")


def _checked(work: Callable[[], list[str]]) -> int:
    """Do it and print what it says; 1 if its check failed."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from altup_moe.inference.hub import CheckFailed

    try:
        print("\n".join(work()))
    except CheckFailed as error:
        print(f"altup-moe: error: check failed: {error}; nothing was written", file=sys.stderr)
        return 1
    return 0


class _Convert(Group):
    """The commands; a directory without one is told which one takes it."""

    def main(self, args: Sequence[str]) -> int:
        given = Path(args[0]) if args else Path()
        if args and args[0] not in self.commands and given.is_dir():
            kind = "import" if model_type(given) is not None else "export"
            meant = shlex.join(["altup-moe", "convert", kind, *args])
            raise UserError(f"convert {given}: unknown command; type {meant}")
        return super().main(args)


CONVERT = _Convert(
    "convert",
    "Models from and to Hugging Face directories. Pickles and code that a model brings along are never loaded.",
    {
        "import": Command(
            "convert import",
            "HF_DIR RUN_DIR [options]",
            ["altup-moe convert import HF_DIR runs/imported --seq-length 1024"],
            ImportOptions,
            import_model,
            positional=["source", "run_dir"],
        ),
        "export": Command(
            "convert export",
            "RUN_DIR HF_DIR [options]",
            ["altup-moe convert export runs/quickstart exported"],
            ExportOptions,
            export_model,
            positional=["source", "out"],
        ),
    },
)
main = CONVERT.main
